"""Boosted trees, which are no network, teach networks of a few hundred parameters on tables.

    python experiments/tabular/tables.py
    python experiments/tabular/tables.py --sources csv:houses.csv --target price --ignored street
    python experiments/tabular/tables.py --sources sklearn:diabetes --teacher mlp --hidden 64 64

Compared on test rows, over several splits and initialisations: logistic or ridge regression; the teacher, gradient-
boosted trees of scikit-learn or a wide network; students alone; students that learn from the teacher's probabilities
or numbers on the training rows (soft), as long as they are worse than it (bounded, of numbers), and on further rows
that are mixed from neighbours (soft mixed), of which a black box may say the class alone (hard mixed). Each network has
one logit for two classes, a softmax for more, and is evaluated once, after its training.
"""

import dataclasses
from typing import Literal

import jax

from jaxkd import models
from jaxkd.experiment import NETWORKS, TRAINING, Context, check_choice, flag, launch
from jaxkd.experiment.domains import COUNT
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.fields.tables import (
    FIGURES,
    KINDS,
    NetworkEstimator,
    TableConfig,
    fit_linear,
    fit_trees,
    make_kinds,
    outputs_of,
    own_rows,
    probabilities,
    scores,
    short_name,
    taught_sources,
)
from jaxkd.experiment.trials import CACHED, Trials
from jaxkd.models.tabular.mlp import table_mlp


@dataclasses.dataclass(frozen=True)
class Config(TableConfig):
    name: str = "tables"
    batch_size: int = 64
    resident: bool = True
    at_once: int = 50
    teacher: Literal["trees", "mlp"] = flag("trees", "boosted trees, or a network of --wide layers", NETWORKS)
    wide: tuple[int, ...] = flag((128, 128), "widths of the hidden layers of --teacher mlp", NETWORKS, COUNT)
    students: tuple[str, ...] = flag(KINDS, "kinds of students; those that do not suit a table are left out", NETWORKS)
    seeds: int = flag(3, "splits, each with a teacher and students of its own", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)


SMALL = dict(name="tables-smoke", sources=("sklearn:iris",), seeds=1, steps=20, at_once=10)
SMALL |= dict(mixed=50, trees=5, students=("soft-mixed",))


def one_split(config, context, spec, seed) -> dict:
    """Name of each row -> what the network is made of, and its figures on the test rows of one split."""
    table, set_name = config.table(spec, seed), short_name(spec)
    terms, own, outputs = make_kinds(config, table), own_rows(table), outputs_of(table)
    these = Trials(context._replace(seed=seed), 1, {}, [])

    def fit(name, source, model, term, **options):
        """Variables, size and figures of one network after its training."""
        given = source, model, term, config.optimizer(), config.steps
        variables = these.fit(f"{set_name}-{name}-{seed}", *given, key=jax.random.key(seed), **options)
        found = scores(table, probabilities(table, predictor(context, model)(variables)(table.test)[1]))
        return variables, f"{models.count_parameters(variables):,}", found

    # 1. The floor and the teacher.
    found, teacher = {}, fit_trees(table, config, seed)
    linear = fit_linear(table)
    found["linear"], found["trees"], estimator = linear[1:], teacher[1:], teacher.estimator
    if config.teacher == "mlp":
        big = table_mlp(outputs, hidden=config.wide)
        variables, *found["mlp teacher"] = fit("teacher", own, big, terms["alone"])
        estimator = NetworkEstimator(big, variables, table)

    # 2. Students, alone and taught.
    student = table_mlp(outputs, hidden=config.hidden)
    sources = taught_sources(context, table, estimator, config, config.students, seed)
    for kind in config.students:
        if kind in terms:
            source, how = (own, {}) if kind == "alone" else (sources[kind], CACHED)
            _, *found[f"student {kind}"] = fit(kind, source, student, terms[kind], **how)
    return found


def procedure(config, run, logger, plan) -> None:
    context = Context(run, logger, plan, config.seed, config.batch_size, dict, dict, config)
    rows, columns = [], {}
    for spec in config.sources:
        splits = [one_split(config, context, spec, config.seed + s) for s in range(config.seeds)]
        figures = {key: FIGURES[key] for key in splits[0]["linear"][1]}
        columns |= figures
        for name, (size, _) in splits[0].items():
            these = Trials(context, config.seeds, figures, rows)
            these.add(f"{short_name(spec)}: {name}", [found[name][1] for found in splits], parameters=size)
    title = f"{len(config.sources)} table(s), {config.seeds} split(s) each, {config.figures} rows"
    Trials(context, config.seeds, columns, rows).conclude(title=title)


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
