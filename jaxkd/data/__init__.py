"""Data: sources of any kind, pipelines with random access, targets joined by example, and the digits."""

from jaxkd.data.chosen import few_labels, of_classes
from jaxkd.data.digits import prepare_digits
from jaxkd.data.fingerprints import fingerprint_variables
from jaxkd.data.pipelines import (
    HostBatch,
    bundles,
    chosen_batches,
    eval_batches,
    prefetch,
    steps_per_epoch,
    train_batches,
)
from jaxkd.data.sources import Source, Spec, in_memory, labels_of, open_source, statistics, table, with_fields
from jaxkd.data.targets import with_targets
from jaxkd.data.text import SEPARATOR, VOCABULARY, Transform, encode_bytes

__all__ = [
    "SEPARATOR",
    "VOCABULARY",
    "HostBatch",
    "Source",
    "Spec",
    "Transform",
    "bundles",
    "chosen_batches",
    "encode_bytes",
    "eval_batches",
    "few_labels",
    "fingerprint_variables",
    "in_memory",
    "labels_of",
    "of_classes",
    "open_source",
    "prefetch",
    "prepare_digits",
    "statistics",
    "steps_per_epoch",
    "table",
    "train_batches",
    "with_fields",
    "with_targets",
]
