"""A trained network as it is used: the time of one answer, and the size of its file."""

from jaxkd.deploy.latency import Latency, answering, latency, one_by_one, parameter_bytes, timed

__all__ = ["Latency", "answering", "latency", "one_by_one", "parameter_bytes", "timed"]
