"""Data: sources of any kind, pipelines with random access, targets joined by example, and the digits."""

from jaxkd.data.digits import prepare_digits
from jaxkd.data.pipelines import HostBatch, bundles, eval_batches, prefetch, steps_per_epoch, train_batches
from jaxkd.data.sources import Source, Spec, in_memory, open_source, statistics, table
from jaxkd.data.targets import fingerprint_variables, with_targets, write_targets
from jaxkd.data.text import SEPARATOR, VOCABULARY, Transform, encode_bytes

__all__ = [
    "SEPARATOR",
    "VOCABULARY",
    "HostBatch",
    "Source",
    "Spec",
    "Transform",
    "bundles",
    "encode_bytes",
    "eval_batches",
    "fingerprint_variables",
    "in_memory",
    "open_source",
    "prefetch",
    "prepare_digits",
    "statistics",
    "steps_per_epoch",
    "table",
    "train_batches",
    "with_targets",
    "write_targets",
]
