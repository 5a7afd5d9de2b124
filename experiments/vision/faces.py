"""Faces: a tiny student learns whether two pictures show one person, of people that no network has seen.

    python experiments/vision/faces.py --source folder:orl_faces
    python experiments/vision/faces.py --source folder:PICTURES --validation-people 3 --test-people 5

A folder has one folder for each person. People, not pictures, are held out: all pairs of the test people's pictures are
compared by the cosine of their embeddings. Compared: pixels, eigenfaces, and their linear discriminants; a teacher with
a margin softmax on the training people; students with the same loss alone, and students that follow the directions of
the teacher's embeddings, for which they need no labels. Each seed divides the people anew and has a teacher of its own.
Use pictures of faces only for research on face recognition, and try to identify no one.
"""

import dataclasses

import jax

from jaxkd import augment, data, losses, models, objectives
from jaxkd.experiment import NETWORKS, Context, check_choice, flag, launch
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.fields import faces
from jaxkd.experiment.images import check_network, first_rows, prepared
from jaxkd.experiment.networks import make_network
from jaxkd.experiment.optimizers import adamw_of
from jaxkd.experiment.trials import CACHED, Trials

KINDS = ("alone", "cosine", "rkd")


@dataclasses.dataclass(frozen=True)
class Config(faces.FaceConfig):
    students: tuple[str, ...] = flag(KINDS, "kinds of students", NETWORKS)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)


SMALL = dict(name="faces-smoke", source=faces.SYNTHETIC, image_size=None, teacher="tiny", student="tiny", crop=1)
SMALL |= dict(validation_people=2, test_people=3, teacher_epochs=1, epochs=1, students=("cosine",), seeds=1)


def make_terms(config, people):
    """Kind of network -> its objective; an embedding is what classifiers call their logits."""
    options = {name: getattr(config, name) for name in ("scale", "margin", "cosine_margin")}
    both = "student.logits", "teacher.logits"
    return {
        "alone": objectives.margin_softmax(people.train.num_classes, **options),
        "cosine": objectives.from_outputs(losses.cosine, *both),
        "rkd": objectives.from_outputs(faces.normalised(losses.rkd), *both, distance_weight=1.0, angle_weight=2.0),
    }


def train_division(config, trials, number, people, found) -> None:
    """Trains a teacher and its students on one division of the people, and finds their figures."""
    context, terms = trials.context, make_terms(config, people)
    big, small = (make_network(name, config.width) for name in (config.teacher, config.student))
    example = context.eval_prepare(first_rows(people.train, 8))
    check_network("--teacher", config.teacher, big, example)
    check_network("--student", config.student, small, example)

    def fit(kind, name, model, term, epochs, **options):
        """Variables of a network, whose figures are added."""
        steps = epochs * data.steps_per_epoch(train, context.batch_of(train))
        optimizer = adamw_of(config.learning_rate)(steps)
        variables = trials.fit(f"{name}-{number}", train, model, term, optimizer, steps, **options)
        embed = predictor(context, model)(variables)
        scores = faces.figures(config, people, *(embed(source)[1] for source in people[1:]))
        found.setdefault(kind, ([], models.count_parameters(variables)))[0].append(scores)
        return variables

    for name, floor in faces.floors(people).items():
        found.setdefault(name, ([], None))[0].append(faces.figures(config, people, *floor))
    train = people.train
    teacher = fit(f"teacher {config.teacher}", "teacher", big, terms["alone"], config.teacher_epochs)
    # Students follow what the teacher says of the pictures without augmentation, which is computed once.
    train = data.with_fields(train, teacher_logits=predictor(context, big)(teacher)(people.train)[1])
    # Another key: a student like its teacher would begin as it did.
    options = CACHED | dict(key=jax.random.key(context.seed + 1_000))
    for kind in config.students:
        fit(f"student {config.student}, {kind}", kind, small, terms[kind], config.epochs, **options)


def procedure(config, run, logger, plan) -> None:
    source, found = faces.open_faces(config), {}
    moves = [augment.flip(), *[augment.random_crop(config.crop)] * (config.crop > 0)]
    for number in range(config.seeds):
        people, channels = faces.divide(config, source, number), source.image_shape[-1]
        usual = [0.5] * channels, [0.25] * channels  # the same in all divisions, whose programs are then the same
        noisy, clean = prepared(people.train, moves, seed=config.seed, statistics=usual)
        context = Context(run, logger, plan, config.seed + number, config.batch_size, noisy, clean, config)
        trials = Trials(context, 1, config.columns, [])
        train_division(config, trials, number, people, found)
    for name, (each, parameters) in found.items():
        trials.add(name, each, parameters=parameters)
    sizes = f"{config.test_people} of {source.num_classes} people held out, {config.seeds} division(s)"
    trials.conclude(title=f"{len(source):,} pictures, {sizes}")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
