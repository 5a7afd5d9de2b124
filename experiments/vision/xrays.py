"""X-rays: a student of LeNet's size learns to find a disease, from few images of healthy people.

    python experiments/vision/xrays.py --source npz:pneumoniamnist.npz
    python experiments/vision/xrays.py --source npz:pneumoniamnist.npz --teacher mobilenet_v2 --name xrays-imagenet
    python experiments/vision/xrays.py --source folder:SCANS --validation-split validation --image-size 64 --positive 1

Compared on the test split, on which each network is evaluated once, after its training: always the same answer, and
logistic regression on pixels; a teacher; students alone, alone with class weights that make rare classes count as much
as common ones, distilled, and distilled with class weights. Thresholds are chosen on the validation split. The table
has the area under the ROC curve, balanced accuracy, sensitivity at a specificity, and the calibration error; the run's
folder has ROC curves, confusion matrices and a reliability diagram. Not for clinical use.
"""

import dataclasses

from jaxkd import augment, data, losses, models, objectives
from jaxkd.experiment import NETWORKS, Context, check_choice, flag, launch
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.fields import frozen, xrays
from jaxkd.experiment.images import check_network, first_rows, prepared
from jaxkd.experiment.kept import kept
from jaxkd.experiment.networks import make_network
from jaxkd.experiment.optimizers import adamw_of
from jaxkd.experiment.trials import CACHED, Trials

KINDS = ("alone", "alone-weighted", "distilled", "distilled-weighted")


@dataclasses.dataclass(frozen=True)
class Config(xrays.XrayConfig):
    students: tuple[str, ...] = flag(KINDS, "kinds of students; weighted ones count rare classes for more", NETWORKS)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)
        if self.teacher == xrays.FROZEN and self.teacher_file is None:
            frozen.published_file()


SMALL = dict(name="xrays-smoke", source=xrays.SYNTHETIC, teacher="tiny", student="tiny", crop=1, seeds=1)
SMALL |= dict(epochs=1, teacher_epochs=1, batch_size=16, students=("distilled-weighted",))


def make_terms(config, splits):
    """Kind of student -> its objective."""
    weigh = xrays.weights_of(splits)
    terms = {}
    for more, options in (("", {}), ("-weighted", {"weigh": weigh})):
        label = objectives.from_labels(losses.cross_entropy, **options)
        kd = objectives.from_logits(losses.kd, temperature=config.temperature, **options)
        terms[f"alone{more}"] = label
        terms[f"distilled{more}"] = objectives.weighted(label=(config.alpha, label), kd=(1 - config.alpha, kd))
    return {kind: terms[kind] for kind in config.students}


def procedure(config, run, logger, plan) -> None:
    splits = xrays.open_splits(config)
    noisy, clean = prepared(splits.train, [augment.random_crop(config.crop)] * (config.crop > 0), seed=config.seed)
    context = Context(run, logger, plan, config.seed, config.batch_size, noisy, clean, config)
    trials, board = Trials(context, config.seeds, config.columns, []), xrays.Board(config, splits, {})
    small, example = (
        make_network(config.student, splits.train.num_classes, config.networks),
        clean(first_rows(splits.train, 8)),
    )
    check_network("--student", config.student, small, example)

    def fit_for(epochs):
        """Optimizer and number of updates of a training."""
        steps = epochs * data.steps_per_epoch(splits.train, context.batch_of(splits.train))
        return adamw_of(config.learning_rate)(steps), steps

    # 1. Floors, and the teacher's answers to all images.
    xrays.add_floors(board, trials)
    if config.teacher == xrays.FROZEN:
        answers, parameters = frozen.answers(config, context, splits)
    else:
        big = make_network(config.teacher, splits.train.num_classes, config.networks)
        check_network("--teacher", config.teacher, big, example)
        label = objectives.from_labels(losses.cross_entropy)
        variables = trials.fit("teacher", splits.train, big, label, *fit_for(config.teacher_epochs))
        predict, names = predictor(context, big)(variables), ("train", "validation", "test")
        sources = splits.train, *splits.evaluated
        make = lambda: {name: predict(x)[1] for name, x in zip(names, sources, strict=True)}  # noqa: E731
        answers, parameters = list(kept(run, "teacher", make).values()), models.count_parameters(variables)
    trials.add(f"teacher {config.teacher}", board.score("teacher", *answers[1:]), parameters=parameters)

    # 2. The students, which read the teacher's answers to the images without augmentation.
    train, of_student = data.with_fields(splits.train, teacher_logits=answers[0]), predictor(context, small)
    for kind, term in make_terms(config, splits).items():

        def score(variables, kind=kind):
            predict = of_student(variables)
            return board.score(kind, *(predict(source)[1] for source in splits.evaluated))

        trials.teach(kind, train, small, term, *fit_for(config.epochs), score, **CACHED)
    trials.conclude(title=xrays.summary(splits, config.seeds), reliability=board.draw(run.path))


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
