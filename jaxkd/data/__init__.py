"""Data: sources of examples from arrays, folders, texts, sounds, TFDS or scikit-learn's digits, batched by pipelines.

`open_source` opens any of them but texts, which `open_texts` reads and `tokenise` makes a source of, and sounds, which
`open_sounds` reads and `to_source` makes a source of; `train_batches`, `eval_batches` and `prefetch` read it. Grain,
TFDS, ArrayRecord, tokenizers, pyarrow and soundfile are imported only by the first call that needs them.
"""

from jaxkd.data.alignment import NO_LABEL, Carried, Pool, carry_tokens, label_tokens, pool_tokens, shared_characters
from jaxkd.data.boxes import open_boxes
from jaxkd.data.labels import Task
from jaxkd.data.masks import IGNORED, from_masks, masks_of_boxes, open_masks
from jaxkd.data.open import Spec, open_source
from jaxkd.data.phrases import add_texts, draw_texts, phrases
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
from jaxkd.data.pseudo import UncertainError, pseudo_labels, with_pseudo_labels
from jaxkd.data.readers.digits import prepare_digits
from jaxkd.data.sounds import Sounds, open_sounds, split_by_speaker, to_source
from jaxkd.data.source import Source, in_memory, labels_of, statistics, table, with_fields
from jaxkd.data.subsets import few_labels, of_classes, repeated
from jaxkd.data.suitability import check_disjoint, check_task, check_unit_pixels
from jaxkd.data.tabular import munge, open_table
from jaxkd.data.tags import Entity, Scheme, entities_of, in_characters, split_words, tag_names, tag_words
from jaxkd.data.tasks import join_tasks
from jaxkd.data.texts import Texts, open_texts
from jaxkd.data.tokenise import from_tokens, tokenise
from jaxkd.data.tokenizer import Encoded, Tokenizer, open_tokenizer, train_tokenizer
from jaxkd.data.tokens import SEPARATOR, VOCABULARY, Transform, encode_bytes

__all__ = [
    "IGNORED",
    "NO_LABEL",
    "SEPARATOR",
    "VOCABULARY",
    "Batches",
    "Carried",
    "Encoded",
    "Entity",
    "HostBatch",
    "Pool",
    "Scheme",
    "Sounds",
    "Source",
    "Spec",
    "Task",
    "Texts",
    "Tokenizer",
    "Transform",
    "UncertainError",
    "add_texts",
    "bundles",
    "carry_tokens",
    "check_disjoint",
    "check_task",
    "check_unit_pixels",
    "chosen_batches",
    "draw_texts",
    "encode_bytes",
    "entities_of",
    "eval_batches",
    "few_labels",
    "from_masks",
    "from_tokens",
    "in_characters",
    "in_memory",
    "join_tasks",
    "label_tokens",
    "labels_of",
    "masks_of_boxes",
    "munge",
    "of_classes",
    "open_boxes",
    "open_masks",
    "open_sounds",
    "open_source",
    "open_table",
    "open_texts",
    "open_tokenizer",
    "phrases",
    "pool_tokens",
    "prefetch",
    "prepare_digits",
    "pseudo_labels",
    "repeated",
    "shared_characters",
    "split_by_speaker",
    "split_words",
    "statistics",
    "steps_per_epoch",
    "table",
    "tag_names",
    "tag_words",
    "to_source",
    "tokenise",
    "train_batches",
    "train_tokenizer",
    "with_fields",
    "with_pseudo_labels",
]
