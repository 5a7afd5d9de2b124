"""Weights in place of outputs: students that start from parts of their teacher's weights, and networks that are merged.

    python experiments/methods/weights.py --source npz:cifar100_{split}.npz
    python experiments/methods/weights.py --teacher resnet14x2 --student resnet14 --shallow resnet8x2 --fresh-head
    python experiments/methods/weights.py --kinds narrow even even-kd soups --seeds 5

Narrow students select channels of all layers: evenly (weight selection), the first ones, at random, or the most
important ones by norms or activations. Shallow ones take the teacher's first, last, or every second block, or means of
neighbouring blocks. Students that began anew are merged: the mean of their weights, as they are, and once neurons are
matched; soups are means of students with one beginning. The table has accuracies before and after the training.
"""

import dataclasses

import jax
import numpy as np

from jaxkd import data, models, reports
from jaxkd.experiment import NETWORKS, check_choice, flag, launch
from jaxkd.experiment.comparison import compare
from jaxkd.experiment.fields import weights
from jaxkd.experiment.images import check_network, first_rows
from jaxkd.experiment.kept import kept
from jaxkd.experiment.networks import make_network
from jaxkd.experiment.text_students import fresh_heads
from jaxkd.experiment.trials import CACHED
from jaxkd.train import students


@dataclasses.dataclass(frozen=True)
class Config(weights.WeightsConfig):
    kinds: tuple[str, ...] = flag(weights.USUAL, f"kinds of students: {', '.join(weights.KINDS)}", NETWORKS)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "kinds", "kind of student", weights.KINDS)
        if self.shallow is not None:
            check_choice(self, "shallow", "network", self.networks)
        weights.check_kinds(self.kinds, self.shallow)


class Table:
    """Students of all kinds, and their rows with accuracies before their training too."""

    def __init__(self, comparison, answers):
        self.comparison, self.config = comparison, comparison.config
        self.taught = data.with_fields(comparison.train, teacher_logits=answers)
        self.trained = {}

    def fresh(self, model):
        """First variables of each student that begins anew."""
        keys = [jax.random.fold_in(jax.random.key(self.config.seed + 1), s) for s in range(self.config.seeds)]
        return [models.init(model, key, self.comparison.example) for key in keys]

    def begin(self, start):
        """One network's variables for all seeds, which perhaps differ in their last layers."""
        if not self.config.fresh_head:
            return [start] * self.config.seeds
        stack = fresh_heads(start, jax.random.key(self.config.seed + 2), self.config.seeds)
        return [students.pick_student(stack, s) for s in range(self.config.seeds)]

    def train(self, phase, model, starts, *, kd):
        """Trains kinds together that differ in their first variables alone, and adds a row for each."""
        comparison, score = self.comparison, self.comparison.scorer(model)
        source = self.taught if kd else comparison.train
        given = dict(seeds=len(starts) * self.config.seeds, **(CACHED if kd else {}))
        given |= dict(start=models.stack(*(one for members in starts.values() for one in members)))
        term, steps = comparison.kd if kd else comparison.label, comparison.updates(self.config.epochs, source)
        found = comparison.trials.fit(phase, source, model, term, comparison.optimizer(steps), steps, **given)
        lost = comparison.context.run.lost[phase]
        for number, (kind, members) in enumerate(starts.items()):
            places = range(number * self.config.seeds, (number + 1) * self.config.seeds)
            self.trained[kind] = [students.pick_student(found, place) for place in places]
            scores = [
                dict.fromkeys(self.config.columns, float("nan")) if place in lost else score(one)
                for place, one in zip(places, self.trained[kind], strict=True)
            ]
            begun = {id(one): score(one)["accuracy"] for one in members}
            start = reports.mean_std(np.asarray(list(begun.values())), scale=100)
            comparison.trials.add(kind, scores, parameters=models.count_parameters(members[0]), start=start)


def add_merged(table, kinds, batch) -> None:
    """Rows of means of weights: merged networks, and those that are trained on, next to one that is as well."""
    comparison, model, members = table.comparison, table.comparison.student, table.trained["narrow"]
    name, score = table.config.student, comparison.scorer(comparison.student)
    chosen = {kind: matched for kind, matched in weights.MATCHED.items() if kind in kinds}
    made = {kind: weights.merge(name, model, members, batch, matched) for kind, matched in chosen.items()}
    for kind, variables in made.items():
        comparison.trials.add(f"{kind}: {len(members)} narrow", score(variables))
    starts = {"continued": members}
    if "merged-matched" in made:
        starts["continued-matched"] = [made["merged-matched"]] * table.config.seeds
    if starts := {kind: start for kind, start in starts.items() if kind in kinds}:
        table.train("continued", model, starts, kd=False)


def add_soups(table, batch) -> None:
    """Rows of soups of students with one beginning, next to the best of them on the validation split."""
    comparison, model, members = table.comparison, table.comparison.student, table.trained["even-kd"]
    measured = lambda x: models.reestimate_statistics(model, x, [batch])  # noqa: E731

    def validate(variables):
        logits = comparison.answers(model, measured(variables), comparison.validation)
        return comparison.score(logits, comparison.validation)["accuracy"]

    greedy, chosen = models.greedy_soup(members, validate)
    rows = {
        "best of even-kd": members[int(np.argmax([validate(x) for x in members]))],
        "uniform soup": measured(models.average(members)),
        f"greedy soup of {len(chosen)}": measured(greedy),
    }
    for name, variables in rows.items():
        comparison.trials.add(name, comparison.scorer(model)(variables))


def procedure(config, run, logger, plan) -> None:
    comparison = compare(config, run, logger, plan)
    kinds, example = [kind for kind in weights.KINDS if kind in config.kinds], comparison.example
    batch = comparison.context.eval_prepare(first_rows(comparison.train, config.calibration))
    wide = None
    if config.shallow is not None:
        wide = make_network(config.shallow, comparison.train.num_classes, config.networks)
        check_network("--shallow", config.shallow, wide, example)
    weights.check_networks(config, comparison.teacher, comparison.student, wide, example)

    # 1. The floor, and the teacher's answers.
    comparison.add_floor()
    trained = comparison.fit_teacher(f"teacher {config.teacher}")
    answer = lambda: {"train": comparison.answers(comparison.teacher, trained, comparison.train)}  # noqa: E731
    table = Table(comparison, kept(run, "teacher", answer)["train"])
    starts = weights.Starts(config, comparison.teacher, trained, batch)

    # 2. Students of a part of its weights.
    for phase, model, names, make in (
        ("narrow", comparison.student, weights.NARROW, starts.narrow),
        ("shallow", wide, weights.SHALLOW, starts.shallow),
    ):
        fresh = table.fresh(model) if set(kinds) & set(names) else []
        for kd in (False, True):
            of_kinds = {}
            for kind in [kind for kind in kinds if kind in names and kind.endswith("-kd") == kd]:
                how = kind.split("-")[0]
                of_kinds[kind] = fresh if how in ("narrow", "shallow") else table.begin(make(fresh[0], how))
            if of_kinds:
                table.train(f"{phase}, {'distilled' if kd else 'alone'}", model, of_kinds, kd=kd)

    # 3. Networks merged from several.
    if set(weights.MERGED[:-1]) & set(kinds):
        add_merged(table, kinds, batch)
    if "soups" in kinds:
        add_soups(table, batch)
    comparison.conclude(headers={"start": "before training %"})


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=weights.SMALL)
