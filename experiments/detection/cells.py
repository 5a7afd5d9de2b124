"""Detectors of objects in pictures: one of full width teaches ones of a quarter of it.

    python experiments/detection/cells.py --boxes csv:boxes.csv --pictures images.zip
    python experiments/detection/cells.py --boxes csv:boxes.csv --pictures images.zip --students all --name cells-all
    python experiments/detection/cells.py --boxes coco:instances_{split}.json --pictures photos --height 160 --width 160

Compared on the test split, on which each network is evaluated once, after its training, by average precision as COCO
computes it: two floors without a network, an anchor-free detector, and ones of a quarter of its channels, alone and
taught by it in several ways. Students learn from the labelled boxes as well, except "hard", which has the teacher's
boxes alone. The run's folder gets pictures with the boxes that teacher and student found.
Interrupt it with Ctrl-C, and start it again to go on.
"""

import dataclasses
from typing import Literal

from jaxkd import data, models
from jaxkd.experiment import TRAINING, Context, cached_teacher, flag, launch
from jaxkd.experiment.domains import COUNT
from jaxkd.experiment.fields import detection as field
from jaxkd.experiment.fields import detection_floors as floors
from jaxkd.experiment.trials import Trials
from jaxkd.train import students


@dataclasses.dataclass(frozen=True)
class Config(field.DetectionConfig):
    name: str = "cells"
    batch_size: int = 16
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)


SMALL = dict(name="cells-smoke", boxes="shapes", pictures="shapes", height=16, width=16, strides=(4,), blocks=1)
SMALL |= dict(depth=1, teacher_width=4, student_width=2, students=("neck",), batch_size=4, views=1, seeds=1)
SMALL |= dict(teacher_epochs=1, epochs=1)


def procedure(config, run, logger, plan) -> None:
    splits = field.open_pictures(config)
    train, test = splits["train"], splits["test"]
    context = Context(run, logger, plan, config.seed, config.batch_size, *field.prepared(config, train), config)
    these = Trials(context, config.seeds, field.columns_of(train.class_names), [])
    widths = config.teacher_width, config.student_width
    big, small = (field.make_detector(config, width, train.num_classes) for width in widths)
    finders = [field.finder(context, model, config.image_size) for model in (big, small)]
    label, epoch = field.label_term(config), data.steps_per_epoch(train, context.batch_of(train))

    # 1. Floors, and the teacher.
    for rule in (floors.usual_boxes, floors.coloured_spots):
        these.add(rule.__name__.replace("_", " "), field.figures(rule(train, test), test))
    steps = config.teacher_epochs * epoch
    teacher = these.fit("teacher", train, big, label, field.adamw(config, steps), steps)
    found = finders[0](teacher, test)
    these.add("teacher", field.figures(found, test), parameters=models.count_parameters(teacher))
    field.draw(run, "teacher", test, found)

    # 2. Its students, which read what it said of some views of each picture.
    kinds = field.kind_terms(config, teacher.params["head"])
    features = sorted({name for kind in config.chosen if kind in kinds for name in kinds[kind][1]})
    soft, reader, nothing = cached_teacher(context, train, big, teacher, views=config.views, features=features)
    given = dict(teacher=reader, teacher_variables=nothing)
    steps = config.epochs * epoch

    def teach(name, source, term, **options):
        score = lambda one: field.figures(finders[1](one, test), test)  # noqa: E731
        return these.teach(name, source, small, term, field.adamw(config, steps), steps, score, **options)

    for kind in config.chosen:
        if kind == "alone":
            student = teach("student alone", train, label)
        elif kind == "hard":
            student = teach(kind, field.with_found(train, finders[0](teacher, train), config.certain), label)
        else:
            student = teach(kind, soft, kinds[kind][0], **given)
    field.draw(run, "student", test, finders[1](students.pick_student(student, 0), test))
    these.conclude(title=f"{test.name}: {len(test)} pictures, {len(train)} to learn from, {config.seeds} seed(s)")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
