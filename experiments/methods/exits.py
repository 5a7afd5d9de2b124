"""Self-distillation: exits on the way through a network that learn from its deepest one, and what each exit costs.

    python experiments/methods/exits.py --source npz:mnist_{split}.npz
    python experiments/methods/exits.py --source folder:PHOTOS --student resnet20 --exits stage1 stage2

Compared on the test split, on which each network is evaluated once at each exit, after its training: logistic
regression; a large teacher; students alone and taught by it; students with exits that learn from labels alone (deep
supervision, the control); students whose exits learn from the deepest one as well (be your own teacher). The table has
the floating-point operations of a picture up to each exit; the exits add parameters, which the deepest one needs not.
"""

import dataclasses
from typing import Literal

import jax

from jaxkd import models
from jaxkd.experiment import NETWORKS, TRAINING, flag, launch
from jaxkd.experiment.comparison import SMOKE, FewDigitsConfig, compare
from jaxkd.experiment.domains import FRACTION, NON_NEGATIVE
from jaxkd.methods import self_distillation
from jaxkd.parallel import DATA
from jaxkd.train import students


@dataclasses.dataclass(frozen=True)
class Config(FewDigitsConfig):
    student: str = "lenet"
    temperature: float = 3.0
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    exits: tuple[str, ...] = flag(("stage1",), "features of the student that have exits", NETWORKS)
    share: float = flag(0.3, "weight of the deepest exit's soft labels in the shallow ones", TRAINING, FRACTION)
    hint: float = flag(0.03, "weight of the distance to the deepest exit's feature", TRAINING, NON_NEGATIVE)


SMALL = {**SMOKE, "name": "exits-smoke", "exits": ("stage1",)}


def procedure(config, run, logger, plan) -> None:
    comparison = compare(config, run, logger, plan)
    one = {name: x[:1] for name, x in comparison.example.items()}
    try:  # exits that do not fit end the run here
        student = models.with_exits(comparison.student, config.exits, comparison.train.num_classes, axis_name=DATA)
        jax.eval_shape(student.init, jax.random.key(0), comparison.example)
    except ValueError as error:
        raise ValueError(f"--exits {' '.join(config.exits)} do not suit --student {config.student}: {error}") from error
    at = {name: models.at_head(student, name) for name in config.exits} | {"deepest": student}

    def cost(model):
        """Operations of a picture, as a cell of the table."""
        return f"{models.size(model, one).flops / 1e6:.2f}"

    def add_exits(kind, term):
        """Rows of one training of students with exits: each exit, and the deepest one."""
        steps = comparison.updates(config.epochs)
        given = comparison.train, student, term, comparison.optimizer(steps), steps
        variables = comparison.trials.fit(kind, *given, seeds=config.seeds)
        each = [students.pick_student(variables, i) for i in range(config.seeds) if i not in run.lost[kind]]
        for name, model in at.items():
            scores = [comparison.scorer(model)(own) for own in each]
            comparison.trials.add(f"{kind}, {name}", scores, flops=cost(model))

    # 1. The floor, a large teacher, students alone and taught by it.
    comparison.add_floor()
    known = comparison.fit_teacher()
    comparison.teach("alone", comparison.label)
    comparison.teach("distilled", comparison.kd, teacher=comparison.teacher, teacher_variables=known)
    sizes = {"teacher": comparison.teacher, "alone": comparison.student, "distilled": comparison.student}
    for row in comparison.trials.rows:
        row["flops"] = cost(sizes[row["network"]]) if row["network"] in sizes else ""

    # 2. Exits that learn from labels, and from the deepest exit.
    alone = self_distillation.deepest_teaches(config.exits, alpha=0.0, weight=0.0)
    options = {"alpha": config.share, "temperature": config.temperature, "weight": config.hint}
    taught = self_distillation.deepest_teaches(config.exits, **options)
    add_exits("exits-labels", alone)
    add_exits("exits-taught", taught)
    comparison.conclude(headers={"flops": "MFLOP a picture"})


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
