"""Across tasks: an encoder that has learned one task on texts learns another, and what becomes of the first.

    python experiments/text/transfer.py --source tsv:sst2_{split}.tsv.xz --target tsv:trec_{split}.tsv.xz
    python experiments/text/transfer.py --source tsv:OLD.tsv --target tsv:NEW.tsv --ways fine-tuned lwf joint

The source is the old task, the target the new one. A published encoder learns the old task once. From there students of
several seeds learn the new one: with the encoder frozen or fine-tuned; without forgetting (LwF: the old last layer goes
on answering as before, on the new task's texts), also with the relations between sentences kept; with the labels of
both tasks, weighted equally or by trained uncertainties. Beside them stand the published encoder without the old task,
the same network from nothing, and logistic regression on tf-idf weights. Embedding tables stay as published.
"""

import dataclasses

import jax
import numpy as np

from jaxkd import reports
from jaxkd.experiment import (
    DATA,
    TRAINING,
    Context,
    check_choice,
    conclude,
    flag,
    launch,
)
from jaxkd.experiment.domains import NON_NEGATIVE, TEMPERATURE
from jaxkd.experiment.text_transfer import FROZEN, SMALL_TASKS, TasksConfig, floor, open_tasks, text_learning
from jaxkd.experiment.two_tasks import make_ways

COLUMNS = {"way": "new task", "before": "old task before %", "after": "old task after %", "new": "new task %"}
COLUMNS |= {"matthews": "new task, Matthews correlation"}
SPLITS = ("train_split", "validation_split", "test_split")
WAYS = ("nothing", "published", "frozen", "fine-tuned", "lwf", "lwf-relations", "joint", "joint-uncertainty")


@dataclasses.dataclass(frozen=True)
class Config(TasksConfig):
    name: str = "text-transfer"
    target: str | None = flag(None, "labelled texts of the new task, as for --source, which is the old one", DATA)
    target_splits: tuple[str, ...] = flag(
        (), "training, validation and test split of the target; chosen if absent", DATA
    )
    label_until: str | None = flag(None, "sign that ends a label, as : does in NUM:date, whose class is NUM", DATA)
    keep: float = flag(1.0, "weight of the old answers in learning without forgetting", TRAINING, NON_NEGATIVE)
    temperature: float = flag(2.0, "softmax temperature T of the old answers", TRAINING, TEMPERATURE)
    relations: float = flag(100.0, "weight of the kept relations between sentences", TRAINING, NON_NEGATIVE)
    ways: tuple[str, ...] = flag(WAYS, "ways to learn the new task", TRAINING)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "ways", "way", WAYS)
        if self.target is None:
            raise ValueError("no --target is given: name texts of the new task, such as --target tsv:PATH.")
        if len(self.target_splits) not in (0, 3):
            raise ValueError(f"--target-splits has {len(self.target_splits)} splits: give three, as train dev test.")


SMALL = dict(SMALL_TASKS, name="text-transfer-smoke", target="sentences", ways=("lwf-relations",))


def row(way, new, **old):
    """Row of the table."""
    percent = {name: reports.mean_std(found["accuracy"], scale=100) for name, found in {"new": new, **old}.items()}
    return {"way": way, **percent, "matthews": reports.mean_std(new["matthews"], digits=3)}


def procedure(config, run, logger, plan) -> None:
    splits = dict(zip(SPLITS, config.target_splits or 3 * [None], strict=True))
    target = dataclasses.replace(config, source=config.target, **splits)
    tasks = open_tasks(config, target, config.layers, config.label_until)
    context = Context(run, logger, plan, config.seed, config.batch_size, dict, dict, config)
    learning, many = text_learning(context, tasks, config.learning_rate), range(config.seeds)

    # 1. Floors, and the old task, learned once.
    found = {"floor": {task: floor(splits) for task, splits in tasks.texts.items()}}
    rows = [row("(tf-idf + logistic regression)", found["floor"]["new"], after=found["floor"]["old"])]
    published = tasks.encoder.variables
    trained, found["old"] = learning.learn_old(published, config.old_epochs)
    starts = {"published": (published, "^heads/"), "old": (trained, "^heads/new/")}

    # 2. The new task, in each way.
    ways = make_ways(config.keep, config.temperature, config.relations, **FROZEN)
    for name in config.ways:
        way = ways[name]
        start = None if way.start is None else learning.begin(*starts[way.start], way, many)
        teacher = dict(teacher=learning.side("old"), teacher_variables=trained) if way.taught else {}
        measured = ["new", "old"] if way.start == "old" else ["new"]
        options = dict(start=start, seeds=many, epochs=config.epochs, measured=measured)
        _, found[name] = learning.fit(name, way, "new", **options, **teacher)
        old = {"before": found["old"]["old"], "after": found[name]["old"]} if way.start == "old" else {}
        rows.append(row(name, found[name]["new"], **old))
    tests = [tasks.sources[task][2] for task in ("new", "old")]
    title = " after ".join(f"{test.name} ({len(test):,} texts)" for test in tests) + f", {config.seeds} seed(s)"
    conclude(run, rows, COLUMNS, title=title, test=jax.tree.map(lambda x: np.asarray(x).tolist(), found))


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
