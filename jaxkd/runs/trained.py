"""Trained networks of a run: variables as `.npz`, and next to them what is needed to use them, as JSON."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.files import explain_write_errors, read_json, replacing, to_json, write_json
from jaxkd.types import PyTree, Variables, leaf_name

_ABOUT = "network.json"


class Trained(NamedTuple):
    """A trained network as its files have it.

    Attributes:
      variables: Its variables, nested dicts of NumPy arrays.
      about: Contents of `network.json`.
    """

    variables: Variables
    about: dict[str, Any]


def write_trained(folder: Path, weights: Mapping[str, Variables], about: Mapping[str, Any]) -> None:
    """Writes a trained network: `<which>.npz` for each of its weights, and then `network.json`, each atomically.

    Args:
      folder: The folder, made if it is missing.
      weights: Such as "final", "best" or "ema" -> variables, arrays on the host; all of one structure.
      about: Name -> value that JSON can hold.

    Raises:
      OSError: If the folder cannot be written to.
    """
    dtypes: dict[str, str] = {}
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for which, variables in weights.items():
        arrays = _paths(variables)
        dtypes |= {path: array.dtype.name for path, array in arrays.items()}
        plain: dict[str, Any] = {path: _plain(array) for path, array in arrays.items()}
        with replacing(folder / f"{which}.npz") as file:
            np.savez(file, **plain)
    write_json(folder / _ABOUT, to_json({**about, "weights": sorted(weights), "dtypes": dtypes}))


def read_trained(folder: Path, which: str = "final") -> Trained:
    """Reads a network that `write_trained` wrote.

    Args:
      folder: The folder.
      which: Name of the weights.

    Returns:
      Variables and description.

    Raises:
      ValueError: If there is no such network or no such weights, or if a file is damaged.
      OSError: If a file cannot be read.
    """
    if not (folder / _ABOUT).is_file():
        known = ", ".join(sorted(file.parent.name for file in folder.parent.glob(f"*/{_ABOUT}"))) or "none"
        raise ValueError(f"there is no trained network in {folder}: give one of those in {folder.parent} ({known}).")
    about = read_json(folder / _ABOUT)
    known, file = about.get("weights", []), folder / f"{which}.npz"
    if which not in known:
        raise ValueError(f"{folder} holds no {which!r} weights: choose one of {', '.join(map(str, known))}.")
    nest: dict[str, Any] = {"params": {}, "state": {}}
    try:
        with file.open("rb") as opened, np.load(opened) as arrays:
            for path in arrays.files:
                *inner, last = path.split("/")
                place = nest
                for name in inner:
                    place = place.setdefault(name, {})
                place[last] = arrays[path].view(jnp.dtype(about["dtypes"][path]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} cannot be read ({error}): train the network again, or restore the file.") from error
    return Trained(Variables(nest["params"], nest["state"]), about)


def fill(like: PyTree, variables: Variables) -> Variables:
    """Puts arrays into another structure of the same paths, such as that of a network's own variables.

    Args:
      like: Variables, or their abstract shapes.
      variables: Variables with arrays of these paths and shapes.

    Returns:
      Variables of the structure of `like`.

    Raises:
      ValueError: If paths or shapes differ; names the first that does.
    """
    wanted, found = _paths(like), _paths(variables)
    for path in sorted({*wanted, *found}):
        there, here = (list(side[path].shape) if path in side else "absent" for side in (found, wanted))
        if there != here:
            raise ValueError(
                f"{path} is {there} in the file and {here} in the network: give the network that was trained."
            )
    return jax.tree.unflatten(jax.tree.structure(like), [found[path] for path in wanted])


def _paths(variables: Any) -> dict[str, Any]:
    """Path -> array, in the order of the leaves."""
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(variables)}


def _plain(array: np.ndarray) -> np.ndarray:
    """An array in a type that `.npz` knows: bfloat16 and its like as integers of the same bits."""
    return array if array.dtype.kind in "biufc" else array.view(np.dtype(f"u{array.dtype.itemsize}"))
