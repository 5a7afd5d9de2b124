"""Sentences about networks that cannot be applied: variables of another network, batches of another shape, flags."""

from __future__ import annotations

import contextlib
import dis
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors

from jaxkd.types import Batch, Variables, leaf_name

_OTHERS = tuple(str(Path(module.__file__).parent) for module in (jax, flax) if module.__file__)
"""Folders of libraries, whose own errors are put into a sentence."""


@contextlib.contextmanager
def told(
    name: str,
    batch: Batch,
    inputs: Sequence[str],
    *,
    train: bool,
    has_key: bool,
    misfit: Callable[[], str | None],
) -> Iterator[None]:
    """Context manager that puts the errors of Flax and JAX about a network and its batch into a sentence.

    Args:
      name: Name of the network.
      batch: Its batch.
      inputs: Fields of the batch that it reads.
      train: The mode.
      has_key: Whether it has a PRNG key.
      misfit: () -> what of the variables does not fit the network, or None; called after an error.

    Yields:
      Nothing.

    Raises:
      ValueError: In a sentence, for errors that Flax or JAX raise inside; errors of the network's own code, and of this
        library, pass through.
    """
    try:
        yield
    except (errors.FlaxError, TypeError, ValueError, ZeroDivisionError) as error:
        if not _is_foreign(error):
            raise
        given = ", ".join(f"{n} {tuple(jnp.shape(batch[n]))}" for n in inputs if n in batch)
        why = _reason(error, train, has_key) or misfit()
        if why is None:
            what = str(error).splitlines()[0].split(" (https:")[0].rstrip(".")
            why = f"{what}; give it batches of the shape and dtype that it was made for"
        raise ValueError(f"{name} cannot be applied to a batch with {given}: {why}.") from error


def _is_foreign(error: BaseException) -> bool:
    """True unless code outside of Flax and JAX has raised it on purpose."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename.startswith(_OTHERS):
        return True
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] != dis.opmap["RAISE_VARARGS"]


def _reason(error: BaseException, train: bool, has_key: bool) -> str | None:
    """Cause of an error that has nothing to do with shapes, and what to do about it."""
    text = str(error).split(" (https:")[0].splitlines()[0].rstrip(".")
    named = "name its flag of training by `training={...}` and `evaluation={...}` of the adapter"
    if isinstance(error, errors.InvalidRngError) or "no `rngs` argument" in text:
        if "`rngs`" in text:
            return "a layer of dropout has no random stream; make it with `rngs=rngs`"
        if train and not has_key:
            return f"it draws random numbers in training ({text}); give its `apply` a PRNG key"
        return f"it draws random numbers outside of training ({text}), as if it were trained; {named}"
    if isinstance(error, errors.ModifyScopeVariableError):
        return f"it changes its state in evaluation ({text}), as if it were trained; {named}"
    if "must be passed to the constructor or at call time" in text:
        return f"{text[0].lower()}{text[1:]}; {named}"
    if isinstance(error, TypeError) and "argument" in text and "()" in text:
        return f"{text}; name the fields of the batch that it reads with `inputs=`, and {named}"
    return None


def misfit_of(variables: Variables, own: Callable[[], Variables]) -> str | None:
    """Difference between variables and those that a network has for this batch.

    Args:
      variables: Those that were given.
      own: () -> the network's own, or their shapes.

    Returns:
      The first difference and what to do, or None if there is none, or the network cannot be initialised either.
    """
    try:
        wanted = {leaf_name(p): tuple(x.shape) for p, x in jax.tree.leaves_with_path(own())}
    except (errors.FlaxError, TypeError, ValueError, LookupError):  # the error that led here is told instead
        return None
    found = {leaf_name(p): tuple(jnp.shape(x)) for p, x in jax.tree.leaves_with_path(variables)}
    for name, shape in wanted.items():
        if name not in found:
            what = "its params are" if name.startswith("params/") else "its running statistics or other state are"
            return (
                f"{what} missing {name!r} {shape}; give Variables(params=..., state=...) of this network, or the "
                "mapping of collections that Flax's `init` gives"
            )
        if found[name] != shape:
            return (
                f"its variables have {name!r} of shape {found[name]} where this batch needs {shape}; give it batches "
                f"as they were made for{_adapters(found[name], shape)}, or variables of this network"
            )
    return None


def _adapters(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Names of functions that make a network read other batches, where shapes suggest one."""
    if len(found) == 4 and len(wanted) == 4 and found[2] != wanted[2]:
        return f", by models.with_channels(model, {found[2]})"
    if len(found) == len(wanted):
        return ", by models.at_resolution(model, size) or models.with_channels(model, channels)"
    return ""


def unmoved(name: str, what: str, arguments: Mapping[str, Any], attributes: Mapping[str, Any]) -> ValueError:
    """Error about a network that trains as it evaluates.

    Args:
      name: Name of the network.
      what: What does not change, such as "its batch norms keep their running statistics".
      arguments: Arguments of its call, by name.
      attributes: Its attributes, by name.

    Returns:
      The error.
    """
    takes = ", ".join(arguments) or "nothing"
    return ValueError(
        f"{name} is trained but {what}: no flag that is known by its name switches them (its call takes {takes}, and "
        f"its attributes are {', '.join(attributes) or 'none'}); name the flag by `training={{...}}` and "
        "`evaluation={...}` of the adapter, or say `training={}` if this is meant."
    )


def check_sizes(**sizes: int) -> None:
    """Refuses sizes of a network that are no positive integers.

    Args:
      **sizes: Name of an option -> its value.

    Raises:
      ValueError: If one is no integer of at least 1.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name} is {size!r}: give an integer of at least 1.")
