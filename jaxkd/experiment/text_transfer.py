"""Two tasks on texts: their configuration, their sources, the encoder of both, and their floors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxkd import data, metrics
from jaxkd.data.splits import say
from jaxkd.experiment.baselines import tf_idf
from jaxkd.experiment.context import Context
from jaxkd.experiment.domains import COUNT, POSITIVE, WHOLE
from jaxkd.experiment.flags import NETWORKS, TRAINING, flag
from jaxkd.experiment.texts import Splits, TextConfig, open_teacher, open_texts_of, tokenised
from jaxkd.experiment.two_tasks import Learning
from jaxkd.pytorch import huggingface
from jaxkd.pytorch.huggingface import Pretrained

EMBEDDINGS = r"^encoder/(token|position|segment)/"
"""Pattern of the encoder's embedding tables, which stay as they were published."""

FROZEN: Mapping[str, str] = {"spared": EMBEDDINGS, "frozen": "^encoder/"}
"""Options of `make_ways` for encoders."""


@dataclasses.dataclass(frozen=True)
class TasksConfig(TextConfig):
    """Base configuration of an experiment in which an encoder learns the task of --source and then another one."""

    layers: tuple[int, ...] = flag((0, 1, 2), "layers of the encoder to keep", NETWORKS, WHOLE)
    max_length: int = 64
    batch_size: int = 32
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    old_epochs: int = flag(1, "passes over the texts of --source, before the new task begins", TRAINING, COUNT)
    epochs: int = flag(2, "passes over the texts of the new task", TRAINING, COUNT)
    learning_rate: float = flag(1e-4, "largest rate of Adam; last layers have ten times it", TRAINING, POSITIVE)
    seeds: int = flag(3, "students of each way, trained together", TRAINING, COUNT)


SMALL_TASKS: Mapping[str, Any] = {
    "source": "sentences",
    "teacher": "tiny",
    "layers": (0,),
    "max_length": 32,
    "buckets": 1,
    "epochs": 1,
    "seeds": 1,
}
"""The values of a smoke run that both experiments with two tasks share."""


class Tasks(NamedTuple):
    """Two tasks and an encoder for both.

    Attributes:
      texts: Task -> its texts.
      sources: Task -> sources of the tokens of its training, validation and test split.
      encoder: The published encoder, whose logits are not normalised vectors of sentences.
    """

    texts: dict[str, Splits]
    sources: dict[str, list[data.Source]]
    encoder: Pretrained


def open_tasks(config: TextConfig, target: TextConfig, layers: tuple[int, ...], label_until: str | None) -> Tasks:
    """Opens the old and the new task and the encoder that reads both.

    Args:
      config: The configuration, with the old task as its source.
      target: The same with the new task as its source.
      layers: Layers of the encoder to keep.
      label_until: Sign that ends a label, as the colon of NUM:date, whose class is NUM; None for whole labels.

    Returns:
      The tasks, "old" and "new".

    Raises:
      ValueError: As the parts say, or if a task has numbers to regress on in place of classes.
    """

    def relabel(label: Any) -> Any:
        return str(label).split(label_until)[0]

    texts = {
        task: open_texts_of(one, relabel=None if label_until is None else relabel)
        for task, one in (("old", config), ("new", target))
    }
    return tasks_of(config, texts, layers)


def tasks_of(config: TextConfig, texts: dict[str, Splits], layers: tuple[int, ...]) -> Tasks:
    """Opens the encoder that reads the texts of two tasks.

    Args:
      config: The configuration.
      texts: "old" and "new" -> texts.
      layers: Layers of the encoder to keep.

    Returns:
      The tasks.

    Raises:
      ValueError: As the parts say, or if a task has numbers to regress on in place of classes.
    """
    say_shared(texts)
    train = texts["old"].train
    encoder, tokenizer = open_teacher(config, train, huggingface.embedder, layers=layers, normalise=False)
    sources = {task: tokenised(config, tokenizer, *splits) for task, splits in texts.items()}
    for splits in sources.values():
        data.check_task(splits[0], "classification")
    return Tasks(texts, sources, encoder)


def say_shared(texts: Mapping[str, Splits]) -> None:
    """Says, as a warning, how many test texts of a task the other one trains on.

    Args:
      texts: "old" and "new" -> texts.
    """
    for task, other in (("old", "new"), ("new", "old")):
        test, train = texts[task].test, texts[other].train
        known = set(train.texts)
        if same := sum(text in known for text in test.texts):
            say(f"{same} of the {len(test)} texts of {test.name}, of the {task} task, stand in {train.name} too.")


def text_learning(context: Context, tasks: Tasks, rate: float) -> Learning:
    """Trainings of the encoder of two tasks, whose embedding tables stay as they were published.

    Args:
      context: The context of the experiment's trainings.
      tasks: The tasks.
      rate: Largest learning rate of the encoder.

    Returns:
      The trainings.
    """
    return Learning(context, tasks.sources, tasks.encoder.model, rate, EMBEDDINGS)


def floor(splits: Splits) -> dict[str, float]:
    """Metrics on the test split of logistic regression on tf-idf weights.

    Args:
      splits: Texts of a task.

    Returns:
      Name -> value, as `two_tasks.MEASURES` has them.
    """
    train, validation, test = splits
    labels = [np.asarray(one.labels) for one in splits]
    found = tf_idf(train.texts, labels[0], (validation.texts, labels[1]), len(train.class_names))
    predicted = found.logits(test.texts).argmax(axis=1)
    classes = np.eye(len(train.class_names))
    confusion = metrics.Matthews(classes[labels[2]].T @ classes[predicted])
    return {"accuracy": float(np.mean(predicted == labels[2])), "matthews": float(confusion.value())}
