"""The same mathematics, faster on some back end: the only place that may name one."""
