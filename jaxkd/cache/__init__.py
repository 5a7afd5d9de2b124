"""A teacher's targets: computed once for each view of each example, verified, and read for every student."""

from jaxkd.cache.fingerprints import fingerprint_variables
from jaxkd.cache.read import with_targets
from jaxkd.cache.write import write_targets

__all__ = ["fingerprint_variables", "with_targets", "write_targets"]
