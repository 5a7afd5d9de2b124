"""The CIFAR-100 distillation benchmark: any of its pairs, any method, next to the published results.

    python experiments/cifar100/run.py --teacher resnet56 --student resnet20 --methods kd at crd --seeds 3
    python experiments/cifar100/run.py --table --seeds 3 --resident --at-once 71   (all methods with published results)
    python experiments/cifar100/run.py --source npz:cifar100_{split}.npz --teacher-file resnet56.pth --epochs 30

The recipe is in `recipe.py`, the published results in `published.py`, the methods with their weights in
`jaxkd/experiment/methods/table.py`. As in the publications, students are evaluated on the test images after each epoch;
nothing is chosen by them but the best epoch, which stands next to the last one because later work reports it. Seeds
differ in the initial weights. Methods with two phases (ab, fsp, ft) have 30 epochs of pre-training, which the seconds
leave out. A method that diverges is marked in the table, and the others go on.
"""

import dataclasses
import functools
import time

import jax
import published
import recipe

from jaxkd import data, experiment, metrics
from jaxkd.experiment import (
    DATA,
    NETWORKS,
    TRAINING,
    Context,
    Evaluator,
    cached_teacher,
    check_choice,
    check_file,
    flag,
    launch,
    methods,
    train_phase,
    variables_of,
)
from jaxkd.experiment.domains import POSITIVE
from jaxkd.experiment.images import check_networks, first_rows, open_images
from jaxkd.experiment.networks import read_teacher
from jaxkd.runs import DivergenceError, NonFiniteError
from jaxkd.train import students


@dataclasses.dataclass(frozen=True)
class Config(experiment.SweepConfig):
    name: str = "cifar100"
    test_split: str = flag("test", "split that is evaluated after each epoch", DATA)
    teacher_file: str | None = flag(None, "PyTorch weights of the teacher; it is trained here if absent", NETWORKS)
    methods: tuple[str, ...] = flag(("kd",), "methods of the students, besides one that learns alone", TRAINING)
    table: bool = flag(False, "instead of --methods: all that have published results for the pair", TRAINING)
    epochs: int = 240
    learning_rate: float | None = flag(
        None, "first rate of SGD; the benchmark's for the network if absent", TRAINING, POSITIVE
    )

    def check(self) -> None:
        """Checks values, names and the teacher's file before the run's folder is made."""
        super().check()
        check_choice(self, "methods", "method", methods.METHODS)
        check_file(self, "teacher_file")
        self.wanted()

    def wanted(self):
        """The methods to train by."""
        return published.methods_of((self.teacher, self.student)) if self.table else self.methods


SMALL = dict(
    name="cifar100-smoke",
    teacher="tiny",
    student="tiny",
    epochs=1,
    batch_size=16,
    methods=("at",),
    train_split="train[:32]",
    test_split="test[:32]",
)


def procedure(config, run, logger, plan) -> None:
    full, test = open_images(config, config.train_split, config.test_split)
    context = Context(run, logger, plan, config.seed, config.batch_size, *recipe.views(full, config.seed), config)
    big, small = (recipe.network(name, full.num_classes) for name in (config.teacher, config.student))
    epoch, seconds, diverged = data.steps_per_epoch(full, context.batch_of(full)), {}, {}
    points = students.grid(seed=range(config.seeds)) if config.seeds > 1 else None

    def train(name, source, model, network, term, evaluator=None, points=None, pretrains="", **options):
        """Trains a phase by the recipe and counts its seconds."""
        began = time.perf_counter()
        epochs = methods.scaled(config.epochs, recipe.PRETRAINING) if pretrains else config.epochs
        rates = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay, "pretrains": pretrains}
        optimizer = recipe.optimizer(network, epochs=epochs, steps_per_epoch=epoch, **rates)
        objective = (term, optimizer) if points is None else lambda: (term, optimizer)
        options |= dict(points=points, steps=epochs * epoch, every=epoch, key=jax.random.key(config.seed))
        options["validation"] = evaluator and (evaluator, test)
        state = train_phase(context, name, source, student=model, objective=objective, **options)
        seconds[name] = time.perf_counter() - began
        return state

    # 1. The teacher, trained here or read from a file, once all methods are known to fit.
    example, names = context.eval_prepare(first_rows(full, 128)), (config.teacher, config.student)
    facts = dict(labels=lambda: data.labels_of(full), steps=config.epochs * epoch, examples=len(full))
    check_networks(config, big, small, example)
    methods.check_methods("--methods", config.wanted(), names, big, small, example, **facts)
    if config.teacher_file is None:
        evaluator, on_labels = Evaluator(context, big, metrics.CLASSIFICATION), methods.objective("alone", None)
        teacher_variables = variables_of(train("teacher", full, big, config.teacher, on_labels, evaluator))
    else:
        teacher_variables = read_teacher(config, big, example)

    # 2. What methods may ask about both networks; the live and the cached teacher.
    pair = methods.describe(names, big, small, teacher_variables, example, **facts)
    live = (dataclasses.replace(full, views=config.number_of_views), big, teacher_variables)
    cached = cached_teacher(context, *live, views=config.number_of_views, keep=config.cache)
    with_teacher = dict(teacher=big, teacher_variables=teacher_variables, stacked=points is not None)
    evaluators = functools.cache(lambda student: Evaluator(context, student, metrics.DISTILLATION, **with_teacher))

    # 3. Students by each method.
    for name in ("alone", *config.wanted()):
        source, teacher, variables = cached if name in methods.LOGITS else live
        method = methods.METHODS.get(name, methods.ALONE)
        given = {"source": source, "model": method.wrap(pair, small), "network": config.student}
        follow = functools.partial(train, **given, teacher=teacher, teacher_variables=variables)
        try:
            pretrained, start = methods.pretrain(method, name, pair, follow, points)
            options = {"evaluator": evaluators(given["model"]), "points": points, "start": start}
            follow(name, term=methods.objective(name, pretrained), **options)
        except (NonFiniteError, DivergenceError) as error:  # the table says so, and the other methods go on
            diverged[name] = str(error)
    recipe.conclude_table(run, config, len(full), seconds, diverged)


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
