"""How a loss states what holds of it: example inputs and properties of `jaxkd.testing`."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxkd.testing import Property


class Declaration(NamedTuple):
    """One row of the property table.

    Attributes:
      inputs: () -> the loss's positional arguments, student first, teacher second, as NumPy arrays.
      properties: What must hold, from `jaxkd.testing`.
      options: Keyword arguments of `check_loss`.
    """

    inputs: Callable[[], tuple[Any, ...]]
    properties: Sequence[Property]
    options: Mapping[str, Any] = MappingProxyType({})
