"""A trained network as it is used: the time of one answer, and the size of its file."""

from jaxkd.deploy.latency import Latency, latency, parameter_bytes, timed

__all__ = ["Latency", "latency", "parameter_bytes", "timed"]
