"""Knowledge distillation and transfer learning in JAX.

Losses are pure functions of arrays, terms and models are pairs of pure functions, and a train step is made from them.
`import jaxkd` imports no part of the library: each (`jaxkd.losses`, `jaxkd.data`, ...) is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxkd import (
        augment,
        boxes,
        cache,
        data,
        deploy,
        experiment,
        files,
        kernels,
        keys,
        labels,
        losses,
        methods,
        metrics,
        models,
        numerics,
        objectives,
        parallel,
        patterns,
        pytorch,
        reports,
        runs,
        testing,
        train,
        types,
    )

__version__ = "0.2.0"

__all__ = [
    "augment",
    "boxes",
    "cache",
    "data",
    "deploy",
    "experiment",
    "files",
    "kernels",
    "keys",
    "labels",
    "losses",
    "methods",
    "metrics",
    "models",
    "numerics",
    "objectives",
    "parallel",
    "patterns",
    "pytorch",
    "reports",
    "runs",
    "testing",
    "train",
    "types",
]


def __getattr__(name: str) -> Any:
    """Imports a part of the library on first use."""
    if name in __all__:
        return importlib.import_module(f"jaxkd.{name}")
    raise AttributeError(f"module 'jaxkd' has no attribute {name!r}: it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
