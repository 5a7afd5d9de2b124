"""The same mathematics, faster on some back end: the only place that may name one."""

from jaxkd.kernels.switch import plain

__all__ = ["plain"]
