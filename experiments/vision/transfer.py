"""Transfer: a teacher pre-trained on one data set helps students on another, with other classes and few labels.

    python experiments/vision/transfer.py --target cifar10 --per-class 50 --seeds 3
    python experiments/vision/transfer.py --source npz:cifar100_{split}.npz --source-classes 80 --target-classes 20

Compared on the target's test split, on which each network is evaluated once, after its training: the teacher with a new
last layer, all else frozen, or thawed gradually; a student alone, one that follows the pre-trained teacher's maps
(label sets may differ), one distilled from the thawed teacher's logits, one from both. One data set can serve as both,
by its first and its last classes.
"""

import dataclasses
import functools

import jax
import optax

from jaxkd import augment, data, experiment, losses, metrics, models, objectives, reports
from jaxkd.experiment import (
    DATA,
    TRAINING,
    Context,
    Evaluator,
    check_choice,
    conclude,
    flag,
    launch,
    train_phase,
    variables_of,
)
from jaxkd.experiment.domains import COUNT, NON_NEGATIVE, POSITIVE, TEMPERATURE
from jaxkd.experiment.images import check_networks, first_rows, prepared
from jaxkd.experiment.networks import make_network
from jaxkd.experiment.transfer import check_kinds, last_layer, open_source_and_target, sgd, thawing
from jaxkd.train import students

COLUMNS = {key: header for key, header in reports.RESULTS.items() if key not in ("agreement", "kl")}
STAGES = ("stage1", "stage2", "stage3")


@dataclasses.dataclass(frozen=True)
class Config(experiment.ImageConfig):
    name: str = "transfer"
    target: str | None = flag(None, "data set of the students, as for --source; the source itself if absent", DATA)
    source_classes: int | None = flag(None, "number of the source's first classes to use; all if absent", DATA, COUNT)
    target_classes: int | None = flag(None, "number of the target's last classes to use; all if absent", DATA, COUNT)
    source_split: str = flag("train", "split of the source to pre-train on", DATA)
    train_split: str = flag("train[:90%]", "split of the target that the labels are drawn from", DATA)
    validation_split: str = flag("train[90%:]", "split of the target that is evaluated during training", DATA)
    test_split: str = flag(
        "test", "split of the target on which each network is evaluated once, after its training", DATA
    )
    per_class: int = flag(50, "labels per class of the target", DATA, COUNT)
    flip: bool = flag(True, "flip images left to right at random", DATA)
    teacher: str = "resnet20"
    student: str = "resnet8"
    pretrain_epochs: int = flag(60, "passes over the source", TRAINING, COUNT)
    epochs: int = flag(100, "passes over the labels of the target", TRAINING, COUNT)
    learning_rate: float = flag(
        0.05, "first rate of SGD with momentum 0.9; it falls along a cosine", TRAINING, POSITIVE
    )
    temperature: float = flag(4.0, "softmax temperature T of the soft labels", TRAINING, TEMPERATURE)
    maps: float = flag(100.0, "weight of attention transfer between the stages", TRAINING, NON_NEGATIVE)
    students: tuple[str, ...] = flag(("alone", "by-maps", "by-logits", "by-both"), "kinds of students", TRAINING)
    seeds: int = flag(1, "students of each kind, trained together", TRAINING, COUNT)

    def check(self) -> None:
        """Checks counts and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", Config.students)


SMALL = dict(
    name="transfer-smoke",
    students=("by-both",),
    teacher="tiny",
    student="tiny",
    pretrain_epochs=1,
    epochs=1,
    per_class=4,
    batch_size=8,
    source_split="train[:32]",
    test_split="test[:32]",
)


def load(config):
    """Images of the source; few labelled ones, validation and test images of the target; and two ways to prepare."""
    sources = open_source_and_target(
        config.source,
        config.source if config.target is None else config.target,
        (config.source_split, config.train_split, config.validation_split, config.test_split),
        **{n: getattr(config, n) for n in ("per_class", "source_classes", "target_classes")},
        **{n: getattr(config, n) for n in ("data_dir", "image_size", "seed")},
    )
    moves = [augment.random_crop(4), *[augment.flip()] * config.flip]
    return sources, *prepared(sources[0], moves, seed=config.seed)


def make_kinds(config, label, on_source, on_target):
    """Kind of student -> its term, and the teacher that it learns from."""
    stages = [objectives.features_of(side, STAGES) for side in ("student", "teacher")]
    maps = (config.maps, objectives.from_outputs(losses.attention_transfer, *stages, as_released=True))
    soft = (0.9, objectives.from_logits(losses.kd, temperature=config.temperature))
    return {
        "alone": (label, {}),
        "by-maps": (objectives.weighted(label=label, maps=maps), on_source),
        "by-logits": (objectives.weighted(label=(0.1, label), kd=soft), on_target),
        "by-both": (objectives.weighted(label=(0.1, label), kd=soft, maps=maps), on_target),
    }


def procedure(config, run, logger, plan) -> None:
    (pretraining, few, validation, test), noisy, clean = load(config)
    key, rows = jax.random.key(config.seed), []
    context = Context(run, logger, plan, config.seed, config.batch_size, noisy, clean, config)
    big, tuned = (make_network(config.teacher, source.num_classes) for source in (pretraining, few))
    small, example = make_network(config.student, few.num_classes), clean(first_rows(few, 8))
    evaluators = functools.cache(lambda model, many: Evaluator(context, model, metrics.CLASSIFICATION, stacked=many))

    def fit(name, model, term, make=lambda rate, steps: sgd(rate), source=few, seeds=None, **options):
        """Variables after a phase; adds its row to the table if the phase is on the target."""
        epochs = config.epochs if source is few else config.pretrain_epochs
        steps = epochs * data.steps_per_epoch(source, context.batch_of(source))
        points = seeds and students.grid(seed=seeds)
        optimizer = make(optax.cosine_decay_schedule(config.learning_rate, steps), steps)
        evaluator = evaluators(model, points is not None)
        objective = (term, optimizer) if points is None else lambda: (term, optimizer)
        options |= dict(points=points, steps=steps, every=max(1, steps // 5), key=key)
        options["validation"] = (evaluator, validation) if source is few else None
        state = train_phase(context, name, source, student=model, objective=objective, **options)
        if source is few:
            count = models.count_parameters(variables_of(state)) // (1 if points is None else len(seeds))
            found = reports.without_lost(metrics.values(evaluator(state, test)), run.lost[name])
            rows.append(reports.result(name, found, parameters=count, labels=len(few)))
        return variables_of(state)

    # 1. The teacher on the source, then on the target: its last layer alone, and all layers thawed gradually.
    label, many = objectives.from_labels(losses.cross_entropy), range(config.seeds) if config.seeds > 1 else None
    check_networks(config, tuned, small, example)
    check_kinds(config, make_kinds(config, label, {"teacher": big}, {"teacher": tuned}), tuned, small, example)
    source_teacher = fit("pre-trained", big, label, source=pretraining)
    start = models.inherit(models.init(tuned, key, example), source_teacher)
    fit("teacher-last-layer", tuned, label, last_layer, start=start)
    thawed_teacher = fit("teacher-thawed", tuned, label, thawing, start=start)

    # 2. The students.
    on_source = dict(teacher=big, teacher_variables=source_teacher)
    on_target = dict(teacher=tuned, teacher_variables=thawed_teacher)
    kinds = make_kinds(config, label, on_source, on_target)
    for kind in config.students:
        fit(kind, small, kinds[kind][0], seeds=many, **kinds[kind][1])
    conclude(run, rows, COLUMNS, title=f"{test.name}: {len(test):,} images, {config.seeds} seed(s)")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
