"""Segmentation: a network gives each pixel a class, and teaches networks of a quarter of its width.

    python experiments/detection/masks.py --boxes csv:boxes.csv --pictures images.zip
    python experiments/detection/masks.py --pictures photos --masks photos_masks --height 128 --width 128
    python experiments/detection/masks.py --pictures npz:faces_{split}.npz --black-box litert:segmenter.tflite

Masks come from PNG files; or from boxes, whose ellipses are weak masks of round objects, such as cells; or from another
network, of which only a file is known. Compared on the test split, on which each network is evaluated once, after its
training, by intersection over union: always the commonest class, and logistic regression on colours; a U-Net; ones of a
quarter of its channels, alone and taught by it in several ways. Students of a black box learn from its masks alone,
hard or soft; their figures say how far they agree with it. The run's folder has masks beside the labelled ones, and
confusion matrices. Interrupt it with Ctrl-C, and start it again to go on.
"""

import dataclasses

from jaxkd import data, models
from jaxkd.experiment import TRAINING, Context, flag, launch
from jaxkd.experiment.domains import COUNT
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.fields import pixels, seen_masks, segmentation
from jaxkd.experiment.optimizers import adamw_of
from jaxkd.experiment.trials import CACHED, Trials


@dataclasses.dataclass(frozen=True)
class Config(segmentation.SegmentationConfig):
    name: str = "masks"
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)


SMALL = dict(name="masks-smoke", pictures=segmentation.SYNTHETIC, height=16, width=16, teacher_width=4, student_width=2)
SMALL |= dict(depth=2, teacher_epochs=1, epochs=1, seeds=1, students=("kd",))


def procedure(config, run, logger, plan) -> None:
    seen = config.black_box is not None
    splits = seen_masks.open_seen(config, run) if seen else segmentation.open_pictures(config)
    train, test = splits["train"], splits["test"]
    prepared = segmentation.prepared(config, train, *["teacher_logits"] * seen)
    context = Context(run, logger, plan, config.seed, config.batch_size, *prepared, config)
    trials = Trials(context, config.seeds, segmentation.columns_of(train.class_names), [])
    board, epoch = pixels.board_of(test), data.steps_per_epoch(train, context.batch_of(train))
    label, steps = segmentation.label_term(), config.epochs * epoch
    big, small = (
        models.unet(train.num_classes, width=width, depth=config.depth)
        for width in (config.teacher_width, config.student_width)
    )
    # 1. Floors, and the teacher.
    pixels.add_floors(board, trials, train)
    if seen:
        given = CACHED
        kinds = dict(hard=label, soft=segmentation.soft_term(config))
    else:
        fit = adamw_of(config.learning_rate)(config.teacher_epochs * epoch), config.teacher_epochs * epoch
        teacher = trials.fit("teacher", train, big, label, *fit)
        logits = predictor(context, big)(teacher)(test)[1]
        trials.add("teacher", board.score("teacher", logits), parameters=models.count_parameters(teacher))
        kinds = segmentation.kind_terms(config, train.num_classes)
        given = dict(teacher=big, teacher_variables=teacher)
    # 2. The students.
    answer = predictor(context, small)
    for kind in config.chosen:

        def score(variables, kind=kind):
            return board.score(kind, answer(variables)(test)[1])

        options = {} if kind in ("alone", "hard") else given
        fit = adamw_of(config.student_rate)(steps), steps
        trials.teach(kind, train, small, kinds[kind], *fit, score, **options)
    board.draw(run.path)
    of = f"agreement with {config.black_box}" if seen else "masks of ellipses" if config.masks is None else "masks"
    trials.conclude(title=f"{test.name}: {len(test):,} pictures, {of}, {config.seeds} seed(s)")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
