"""Cached targets: a teacher's outputs, computed once for each view of each example and read for every student.

`write_targets` computes and writes them, `with_targets` verifies them and joins them to a source. `black_box` does both
for a teacher that is no network of this library, of which nothing but the answers is known.
"""

from jaxkd.cache.black_box import black_box
from jaxkd.cache.fingerprints import fingerprint_ids, fingerprint_variables
from jaxkd.cache.read import with_targets
from jaxkd.cache.write import write_targets

__all__ = ["black_box", "fingerprint_ids", "fingerprint_variables", "with_targets", "write_targets"]
