"""Two tasks on texts: their sources and floors, and the ways to learn the new one after the old one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import data, losses, metrics, models, objectives, reports
from jaxkd.data.splits import say
from jaxkd.experiment.baselines import tf_idf
from jaxkd.experiment.context import Context
from jaxkd.experiment.domains import COUNT, POSITIVE, WHOLE
from jaxkd.experiment.evaluator import Evaluator
from jaxkd.experiment.flags import NETWORKS, TRAINING, flag
from jaxkd.experiment.images import first_rows
from jaxkd.experiment.optimizers import warmed_up
from jaxkd.experiment.texts import Splits, TextConfig, open_teacher, open_texts_of, tokenised
from jaxkd.experiment.trainer import train_phase, variables_of
from jaxkd.pytorch import huggingface
from jaxkd.pytorch.huggingface import Pretrained
from jaxkd.train import optimizers, students
from jaxkd.types import Metric, Model, Term, Variables

EMBEDDINGS = r"^encoder/(token|position|segment)/"
"""Pattern of the encoder's embedding tables, which stay as they were published."""

MEASURES: Mapping[str, Metric] = {"accuracy": metrics.accuracy, "matthews": metrics.matthews}
"""Metrics of both tasks."""


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


class Way(NamedTuple):
    """A way to learn the new task.

    Attributes:
      term: The objective, of a student with last layers `old` and `new`, whose logits are those of its own task.
      texts: "new", or "both" for the texts of both tasks, joined by `data.join_tasks`.
      start: "old" for the classifier of the old task, "published" for the encoder as published, None for nothing.
      taught: Whether the classifier of the old task is its teacher.
      frozen: Pattern of the params that are not trained; None for none.
    """

    term: Term
    texts: str = "new"
    start: str | None = "old"
    taught: bool = False
    frozen: str | None = EMBEDDINGS


OLD = Way(objectives.from_labels(losses.cross_entropy), start="published")
"""The way in which the old task itself is learned."""


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


def make_ways(keep: float = 1.0, temperature: float = 2.0, relations: float = 100.0) -> dict[str, Way]:
    """Makes the ways to learn a new task.

    Learning without forgetting begins with all layers at once, without the paper's first phase for the new last layer.

    Args:
      keep: Weight of the old answers in learning without forgetting, lambda_o. The paper's loss has no factor T^2, so
        that its 1 is 1 / T^2 here.
      temperature: T of the old answers.
      relations: Weight of the kept relations between the sentences of a batch.

    Returns:
      Name -> way.

    Reference:
      Li, Hoiem, "Learning without Forgetting", ECCV 2016, https://arxiv.org/abs/1606.09282
    """

    def on_labels(task: str, where: str | None = None) -> Term:
        return objectives.from_outputs(losses.cross_entropy, f"student.logits_{task}", "batch.label", where=where)

    label, both = on_labels("new"), {task: on_labels(task, where=f"is_{task}") for task in ("new", "old")}
    answers = objectives.from_outputs(losses.kd, "student.logits_old", "teacher.logits", temperature=temperature)
    kept: dict[str, Any] = {"label": label, "answers": (keep, answers)}
    alike = (relations, objectives.from_features(losses.sp, student="pooled", teacher="pooled"))
    return {
        "nothing": Way(label, start=None, frozen=None),
        "published": Way(label, start="published"),
        "frozen": Way(label, frozen="^encoder/"),
        "fine-tuned": Way(label),
        "lwf": Way(objectives.weighted(**kept), taught=True),
        "lwf-relations": Way(objectives.weighted(**kept, relations=alike), taught=True),
        "joint": Way(objectives.weighted(**both), texts="both"),
        "joint-uncertainty": Way(objectives.uncertainty_weighted(**both), texts="both"),
    }


class Learning:
    """Trainings of one network with a last layer for each task, stacked students of several seeds at a time.

    Args:
      context: The context of the experiment's trainings.
      tasks: The tasks.
      rate: Largest learning rate of the encoder.
    """

    def __init__(self, context: Context, tasks: Tasks, rate: float) -> None:
        self._context, self._sources, self._rate = context, tasks.sources, rate
        self._key = jax.random.key(context.seed)
        old, new = (tasks.sources[task][0].num_classes for task in ("old", "new"))
        self._both = models.with_heads(tasks.encoder.model, old=old, new=new)
        self._evaluators: dict[tuple[str, str | None], Evaluator] = {}

    def side(self, task: str, frozen: str | None = None) -> Model:
        """The network with one task's logits.

        Args:
          task: "old" or "new".
          frozen: Pattern of the params that are not trained; None for none.

        Returns:
          A model.
        """
        model = models.at_head(self._both, task)
        return model if frozen is None else models.frozen(model, frozen)

    def begin(self, trained: Variables, fresh: str, frozen: str | None, seeds: Sequence[int]) -> Variables:
        """Starts several students with trained variables and last layers of their own.

        Args:
          trained: Variables of the encoder, or of the network.
          fresh: Pattern of the params that begin anew.
          frozen: Pattern of the params that are not trained; None for none.
          seeds: A seed for each student.

        Returns:
          Variables, stacked.
        """
        example = first_rows(self._sources["old"][0], 2)
        own = [models.init(self._both, jax.random.fold_in(self._key, seed), example) for seed in seeds]
        stack = [models.inherit(one, trained, fresh=fresh) for one in own]
        stack = stack if frozen is None else [models.freeze(one, frozen) for one in stack]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)

    def learn_old(
        self, published: Variables, epochs: int, name: str = "old"
    ) -> tuple[Variables, dict[str, dict[str, Any]]]:
        """Trains the encoder on the old task, once.

        Args:
          published: Variables of the encoder.
          epochs: Passes over the texts.
          name: Name of the phase.

        Returns:
          Variables of the network, none of them frozen, and the metrics as `fit` gives them.
        """
        start = self.begin(published, "^heads/", OLD.frozen, [0])
        stack, found = self.fit(name, OLD, "old", start=start, seeds=[0], epochs=epochs, measured=["old"])
        return models.thaw(students.pick_student(stack, 0)), found

    def fit(
        self,
        name: str,
        way: Way,
        task: str,
        *,
        start: Variables | None,
        seeds: Sequence[int],
        epochs: int,
        measured: Sequence[str],
        **teacher: Any,
    ) -> tuple[Variables, dict[str, dict[str, Any]]]:
        """Trains students in one way and evaluates them on test splits.

        Args:
          name: Name of the phase.
          way: The way.
          task: The task that is learned, on whose validation split they are evaluated during training.
          start: Their variables, as `begin` makes them; None for new ones.
          seeds: A seed for each student.
          epochs: Passes over the texts.
          measured: Tasks on whose test splits they are evaluated.
          **teacher: Teacher and its variables, as `train_phase` takes them.

        Returns:
          Variables, stacked, and for each of the tasks the metrics [S] by name.
        """
        context, source = self._context, self._sources[task][0]
        if way.texts == "both":
            source = data.join_tasks(**{name: splits[0] for name, splits in self._sources.items()})
        steps = epochs * data.steps_per_epoch(source, context.batch_of(source))
        state = train_phase(
            context,
            name,
            source,
            student=self.side(task, way.frozen),
            objective=lambda **point: (way.term, adam(self._rate, steps, alike=way.start is None)),
            points=students.grid(seed=seeds),
            steps=steps,
            every=steps,
            key=self._key,
            start=start,
            validation=(self._evaluator(task, way.frozen), self._sources[task][1]),
            measured={},
            **teacher,
        )
        found = {
            one: metrics.values(self._evaluator(one, way.frozen)(state, self._sources[one][2])) for one in measured
        }
        lost = context.run.lost[name]
        return variables_of(state), {one: reports.without_lost(values, lost) for one, values in found.items()}

    def _evaluator(self, task: str, frozen: str | None) -> Evaluator:
        """The evaluation of a task, compiled once for networks with the same frozen part."""
        known = self._evaluators
        if (task, frozen) not in known:
            known[task, frozen] = Evaluator(self._context, self.side(task, frozen), MEASURES, stacked=True)
        return known[task, frozen]


def adam(rate: float, steps: int, *, alike: bool = False) -> optax.GradientTransformation:
    """Adam whose rate rises over a tenth of the steps and falls along a cosine, ten times larger for last layers.

    Args:
      rate: Largest rate of the encoder.
      steps: Updates.
      alike: Whether the encoder has the rate of the last layers too, as one with random weights should.

    Returns:
      An optax transformation.
    """

    def make(rate: float) -> optax.GradientTransformation:
        return optax.adam(warmed_up(rate, steps))

    return make(10 * rate) if alike else optimizers.by_path({"heads/|term/": make(10 * rate)}, make(rate))


def floor(splits: Splits) -> dict[str, float]:
    """Metrics on the test split of logistic regression on tf-idf weights.

    Args:
      splits: Texts of a task.

    Returns:
      Name -> value, as `MEASURES` has them.
    """
    train, validation, test = splits
    labels = [np.asarray(one.labels) for one in splits]
    found = tf_idf(train.texts, labels[0], (validation.texts, labels[1]), len(train.class_names))
    predicted = found.logits(test.texts).argmax(axis=1)
    classes = np.eye(len(train.class_names))
    confusion = metrics.Matthews(classes[labels[2]].T @ classes[predicted])
    return {"accuracy": float(np.mean(predicted == labels[2])), "matthews": float(confusion.value())}
