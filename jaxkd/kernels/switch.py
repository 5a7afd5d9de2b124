"""Switch between this folder's forms and XLA's own."""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax

_PLAIN = jax.make_user_context(default_value=False)


def plain() -> AbstractContextManager[None]:
    """Context in which convolutions, dense layers and vocabularies take XLA's own form on every platform.

    Programs traced in it have no branch that depends on the platform, as an export needs:

        with kernels.plain():
            exported = jax.export.export(jax.jit(model_fn))(*arguments)

    It is a part of the key of JAX's caches, so a function that was compiled outside is traced anew inside, and it holds
    for the thread that enters it alone.

    Returns:
      A context manager.
    """
    return _PLAIN(True)


def is_plain() -> bool:
    """Tells whether the thread is inside `plain()`."""
    return bool(_PLAIN.value)
