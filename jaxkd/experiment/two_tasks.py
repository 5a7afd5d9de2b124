"""Two tasks for one network: the ways to learn the new one after the old one, and what becomes of the old one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd import data, losses, metrics, models, objectives, reports
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import Evaluator
from jaxkd.experiment.images import first_rows
from jaxkd.experiment.optimizers import warmed_up
from jaxkd.experiment.trainer import train_phase, variables_of
from jaxkd.train import optimizers, students
from jaxkd.types import Batch, Metric, Model, Term, Variables

MEASURES: Mapping[str, Metric] = {"accuracy": metrics.accuracy, "matthews": metrics.matthews}
"""Metrics of both tasks."""


class Way(NamedTuple):
    """A way to learn the new task.

    Attributes:
      term: The objective, of a student with last layers `old` and `new`, whose logits are those of its own task.
      rows: "new", or "both" for the rows of both tasks, joined by `data.join_tasks`.
      start: "old" for the network of the old task, "published" for an encoder as published, None for nothing.
      taught: Whether the network of the old task is its teacher.
      frozen: Pattern of the params that are not trained; None for none.
      rank: Rank of the adapters, `models.lora`, that are trained with the last layer of the new task alone; 0 for none.
      rules: Patterns of the kernels that have adapters.
    """

    term: Term
    rows: str = "new"
    start: str | None = "old"
    taught: bool = False
    frozen: str | None = None
    rank: int = 0
    rules: tuple[str, ...] = ()

    @property
    def part(self) -> tuple[Any, ...]:
        """Which part of the network is trained: ways with the same one share their programs."""
        return self.frozen, self.rank, self.rules

    def model(self, model: Model) -> Model:
        """The network of which the rest is not trained.

        Args:
          model: The network.

        Returns:
          A model.
        """
        if self.rank:
            return models.lora(model, self.rules, self.rank, trained=_NEW)
        return model if self.frozen is None else models.frozen(model, self.frozen)

    def variables(self, key: jax.Array, variables: Variables) -> Variables:
        """Variables of `model`.

        Args:
          key: Typed PRNG key [], for adapters.
          variables: Those of the network.

        Returns:
          The variables.
        """
        if self.rank:
            return models.add_lora(key, variables, self.rules, self.rank, trained=_NEW)
        return variables if self.frozen is None else models.freeze(variables, self.frozen)


_NEW = r"^heads/new/"


def make_ways(
    keep: float = 1.0,
    temperature: float = 2.0,
    relations: float = 100.0,
    *,
    frozen: str,
    spared: str | None = None,
) -> dict[str, Way]:
    """Makes the ways to learn a new task.

    Learning without forgetting begins with all layers at once, without the paper's first phase for the new last layer.

    Args:
      keep: Weight of the old answers in learning without forgetting, lambda_o. The paper's loss has no factor T^2, so
        that its 1 is 1 / T^2 here.
      temperature: T of the old answers.
      relations: Weight of the kept relations between the examples of a batch.
      frozen: Pattern of all params but last layers.
      spared: Pattern of the params that no way trains that starts with trained ones; None for none.

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
        "nothing": Way(label, start=None),
        "published": Way(label, start="published", frozen=spared),
        "frozen": Way(label, frozen=frozen),
        "fine-tuned": Way(label, frozen=spared),
        "lwf": Way(objectives.weighted(**kept), taught=True, frozen=spared),
        "lwf-relations": Way(objectives.weighted(**kept, relations=alike), taught=True, frozen=spared),
        "joint": Way(objectives.weighted(**both), rows="both", frozen=spared),
        "joint-uncertainty": Way(objectives.uncertainty_weighted(**both), rows="both", frozen=spared),
    }


class Learning:
    """Trainings of one network with a last layer for each task, stacked students of several seeds at a time.

    Args:
      context: The context of the experiment's trainings.
      sources: "old" and "new" -> sources of its training, validation and test split.
      model: The network, whose feature `pooled` the last layers read.
      rate: Largest learning rate of the network.
      spared: Pattern of the params that stay as they were published when the old task is learned; None for none.
      rehearsed: Rows of the old task that are learned together with those of the new one; all of its training if None.
    """

    def __init__(
        self,
        context: Context,
        sources: Mapping[str, Sequence[data.Source]],
        model: Model,
        rate: float,
        spared: str | None = None,
        rehearsed: data.Source | None = None,
    ) -> None:
        self._context, self._sources, self._rate, self._spared = context, sources, rate, spared
        self._rehearsed = sources["old"][0] if rehearsed is None else rehearsed
        self._key = jax.random.key(context.seed)
        old, new = (sources[task][0].num_classes for task in ("old", "new"))
        self._both = models.with_heads(model, old=old, new=new)
        self._evaluators: dict[tuple[Any, ...], Evaluator] = {}

    def side(self, task: str, way: Way | None = None) -> Model:
        """The network with one task's logits.

        Args:
          task: "old" or "new".
          way: The way, some of which train a part of the network alone; None for the whole network.

        Returns:
          A model.
        """
        model = models.at_head(self._both, task)
        return model if way is None else way.model(model)

    def check(self, way: Way) -> None:
        """Refuses a way of which the part to train does not fit the network, by shapes alone.

        Args:
          way: The way.

        Raises:
          ValueError: As `models.add_lora` and `models.freeze` say.
        """
        jax.eval_shape(lambda key: way.variables(key, self._both.init(key, self._example())), self._key)

    def _example(self) -> Batch:
        """Rows for shapes."""
        return self._context.eval_prepare(first_rows(self._sources["old"][0], 2))

    def begin(self, trained: Variables, fresh: str, way: Way, seeds: Sequence[int]) -> Variables:
        """Starts several students with trained variables and last layers of their own.

        Args:
          trained: Variables of the encoder, or of the network.
          fresh: Pattern of the params that begin anew.
          way: The way.
          seeds: A seed for each student.

        Returns:
          Variables, stacked.
        """
        example, stack = self._example(), []
        for seed in seeds:
            key = jax.random.fold_in(self._key, seed)
            own = models.inherit(models.init(self._both, key, example), trained, fresh=fresh)
            stack.append(way.variables(key, own))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)

    def learn_old(
        self, published: Variables | None, epochs: int, name: str = "old"
    ) -> tuple[Variables, dict[str, dict[str, Any]]]:
        """Trains the network on the old task, once.

        Args:
          published: Variables of an encoder; None to begin with nothing.
          epochs: Passes over the rows.
          name: Name of the phase.

        Returns:
          Variables of the network, none of them frozen, and the metrics as `fit` gives them.
        """
        label = objectives.from_labels(losses.cross_entropy)
        way = Way(label, start=None if published is None else "published", frozen=self._spared)
        start = None if published is None else self.begin(published, "^heads/", way, [0])
        stack, found = self.fit(name, way, "old", start=start, seeds=[0], epochs=epochs, measured=["old"])
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
          epochs: Passes over the rows.
          measured: Tasks on whose test splits they are evaluated.
          **teacher: Teacher and its variables, as `train_phase` takes them.

        Returns:
          Variables, stacked, and for each of the tasks the metrics [S] by name.
        """
        context, source = self._context, self._sources[task][0]
        if way.rows == "both":
            source = data.join_tasks(old=self._rehearsed, new=self._sources["new"][0])
        steps = epochs * data.steps_per_epoch(source, context.batch_of(source))
        state = train_phase(
            context,
            name,
            source,
            student=self.side(task, way),
            objective=lambda **point: (way.term, adam(self._rate, steps, alike=way.start is None)),
            points=students.grid(seed=seeds),
            steps=steps,
            every=steps,
            key=self._key,
            start=start,
            validation=(self._evaluator(task, way), self._sources[task][1]),
            measured={},
            **teacher,
        )
        found = {one: metrics.values(self._evaluator(one, way)(state, self._sources[one][2])) for one in measured}
        lost = context.run.lost[name]
        return variables_of(state), {one: reports.without_lost(values, lost) for one, values in found.items()}

    def _evaluator(self, task: str, way: Way) -> Evaluator:
        """The evaluation of a task, compiled once for networks of which the same part is trained."""
        known, place = self._evaluators, (task, *way.part)
        if place not in known:
            known[place] = Evaluator(self._context, self.side(task, way), MEASURES, stacked=True)
        return known[place]


def adam(rate: float, steps: int, *, alike: bool = False) -> optax.GradientTransformation:
    """Adam whose rate rises over a tenth of the steps and falls along a cosine, ten times larger for what begins anew.

    Args:
      rate: Largest rate of the network; last layers and adapters have ten times it.
      steps: Updates.
      alike: Whether the network has that larger rate too, as one with random weights should.

    Returns:
      An optax transformation.
    """

    def make(rate: float) -> optax.GradientTransformation:
        return optax.adam(warmed_up(rate, steps))

    anew = f"heads/|{models.LORA}/|term/"
    return make(10 * rate) if alike else optimizers.by_path({anew: make(10 * rate)}, make(rate))
