"""Arrays that a run computes once: a run that goes on reads them from its folder."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping

import numpy as np
from jax.typing import ArrayLike

from jaxkd.files import explain_write_errors, replacing
from jaxkd.parallel import processes
from jaxkd.runs.directory import Run


def kept(run: Run, name: str, make: Callable[[], Mapping[str, ArrayLike]]) -> dict[str, np.ndarray]:
    """Computes arrays, or reads them if an earlier start of the run has computed them.

    Args:
      run: The run, whose configuration says all that they depend on.
      name: Their file's name in the folder `arrays` of the run, without its ending.
      make: Computes them, name -> array.

    Returns:
      Name -> array.

    Raises:
      ValueError: If the file is damaged.
      OSError: If it cannot be written.
    """
    file = run.path / "arrays" / f"{name}.npz"
    if file.exists():
        try:
            with np.load(file) as arrays:
                return {key: arrays[key] for key in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} cannot be read ({error}): delete it, and it will be computed again.") from error
    found = {key: np.asarray(value) for key, value in make().items()}
    if processes.is_first():
        run.settle()
        with explain_write_errors(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            np.savez(stream, **found)  # type: ignore[arg-type]
    return found
