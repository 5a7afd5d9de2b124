"""Data: sources of examples from arrays, folders, TFDS or scikit-learn's digits, and pipelines that batch them.

`open_source` opens any of them; `train_batches`, `eval_batches` and `prefetch` read it. Grain, TFDS and ArrayRecord are
imported only by the first call that needs them.
"""

from jaxkd.data.open import Spec, open_source
from jaxkd.data.pipeline import (
    Batches,
    HostBatch,
    bundles,
    chosen_batches,
    eval_batches,
    prefetch,
    steps_per_epoch,
    train_batches,
)
from jaxkd.data.readers.digits import prepare_digits
from jaxkd.data.source import Source, in_memory, labels_of, statistics, table, with_fields
from jaxkd.data.subsets import few_labels, of_classes
from jaxkd.data.suitability import check_disjoint, check_task, check_unit_pixels
from jaxkd.data.texts import Texts, open_texts
from jaxkd.data.tokenise import from_tokens, tokenise
from jaxkd.data.tokenizer import Encoded, Tokenizer, open_tokenizer, train_tokenizer
from jaxkd.data.tokens import SEPARATOR, VOCABULARY, Transform, encode_bytes

__all__ = [
    "SEPARATOR",
    "VOCABULARY",
    "Batches",
    "Encoded",
    "HostBatch",
    "Source",
    "Spec",
    "Texts",
    "Tokenizer",
    "Transform",
    "bundles",
    "check_disjoint",
    "check_task",
    "check_unit_pixels",
    "chosen_batches",
    "encode_bytes",
    "eval_batches",
    "few_labels",
    "from_tokens",
    "in_memory",
    "labels_of",
    "of_classes",
    "open_source",
    "open_texts",
    "open_tokenizer",
    "prefetch",
    "prepare_digits",
    "statistics",
    "steps_per_epoch",
    "table",
    "tokenise",
    "train_batches",
    "train_tokenizer",
    "with_fields",
]
