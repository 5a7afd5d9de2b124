"""More than one modality: a teacher that sees pictures and hears sounds, students that do one of the two.

    python experiments/methods/modalities.py --source "npz:fsdd/{split}.npz" --images "npz:mnist_{split}.npz"
    python experiments/methods/modalities.py --source folder:words --speaker-pattern '^([^_]+)_' --images folder:PHOTOS

Spoken and written digits of one class make a pair; pictures and speakers of the test are in no training. The table
always has three columns: networks given both, the picture alone, the sound alone. Compared: linear floors; a teacher of
both modalities, which is trained to do without one; students of one modality alone, distilled from the teacher given
that modality alone, and given both; two towers trained without classes, judged by the classes of the other modality's
training examples, small ones alone and with the losses of CLIP-KD.

Reference:
  Gupta, Hoffman, Malik, "Cross Modal Distillation for Supervision Transfer", CVPR 2016,
  https://arxiv.org/abs/1507.00448; Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation", CVPR 2024,
  https://arxiv.org/abs/2307.12732
"""

import dataclasses
from typing import Literal

from jaxkd import data, losses, models, objectives
from jaxkd.experiment import NETWORKS, NO_VARIABLES, TRAINING, Context, check_choice, flag, launch
from jaxkd.experiment.domains import COUNT, FRACTION, POSITIVE, TEMPERATURE
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.fields import modalities
from jaxkd.experiment.optimizers import adamw_of
from jaxkd.experiment.trials import CACHED, Trials

STUDENTS = ("alone", "from-one", "from-both")
TOWERS = ("contrastive", "clip-kd")
NO_TOWERS = "none"
LABEL = objectives.from_labels(losses.cross_entropy)
CLIP = objectives.from_outputs(losses.clip, "student.image", "student.sound", temperature=0.1)
FOUR = ("student.image", "student.sound", "teacher.logits", "teacher.teacher_sound")


@dataclasses.dataclass(frozen=True)
class Config(modalities.PairConfig):
    name: str = "modalities"
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    students: tuple[str, ...] = flag(STUDENTS, "kinds of students, of " + ", ".join(STUDENTS), NETWORKS)
    towers: tuple[str, ...] = flag(TOWERS, f"kinds of small towers, of {', '.join(TOWERS)}; or {NO_TOWERS}", NETWORKS)
    picture_widths: tuple[int, ...] = flag((8, 16), "channels of the teacher's network for pictures", NETWORKS, COUNT)
    widths: tuple[int, ...] = flag((8, 16, 32), "channels of the teacher's network for sounds", NETWORKS, COUNT)
    hidden: int = flag(16, "units of the students' network for pictures", NETWORKS, COUNT)
    width: int = flag(16, "channels of the students' network for sounds", NETWORKS, COUNT)
    embedding: int = flag(32, "width of the embeddings of both towers", NETWORKS, COUNT)
    modality_dropout: float = flag(0.5, "probability that a training pair keeps one modality alone", TRAINING, FRACTION)
    batch_size: int = 64
    teacher_steps: int = flag(400, "updates of each teacher", TRAINING, COUNT)
    steps: int = flag(400, "updates of each student", TRAINING, COUNT)
    learning_rate: float = flag(4e-3, "highest rate of AdamW", TRAINING, POSITIVE)
    temperature: float = flag(4.0, "softmax temperature T of the soft labels", TRAINING, TEMPERATURE)
    alpha: float = flag(0.1, "weight of the labels; the soft labels have the rest", TRAINING, FRACTION)
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", STUDENTS)
        check_choice(self, "towers", "kind of towers", (*TOWERS, NO_TOWERS))
        if NO_TOWERS in self.towers and len(self.towers) > 1:
            raise ValueError(f"--towers has {NO_TOWERS} next to kinds of towers: give one or the other.")


SMALL = dict(name="modalities-smoke", source="tones", train_images="train", seconds=0.2, batch_size=8, seeds=1)
SMALL |= dict(picture_widths=(2,), widths=(2,), hidden=4, width=4, embedding=4, teacher_steps=2, steps=2)
SMALL |= dict(students=("from-both",), towers=(NO_TOWERS,))


def big(config, outputs):
    """The teacher's networks, of a number of outputs."""
    return {
        "image": models.convnet(outputs, widths=config.picture_widths),
        "sound": models.spectrum_cnn(outputs, widths=config.widths),
    }


def small(config, outputs):
    """The students' networks."""
    sound = models.depthwise_net(outputs, width=config.width, blocks=2, kernel=5)
    return {"image": models.mlp(outputs, hidden=(config.hidden,)), "sound": sound}


def teach_classes(config, these, pairs, optimizer):
    """A teacher of both modalities, and students of one."""
    K, context = pairs.train.num_classes, these.context
    both = models.fused(K, big(config, K), dropout=config.modality_dropout)
    views = modalities.views(both)
    variables = these.fit("teacher", pairs.train, both, LABEL, optimizer(config.teacher_steps), config.teacher_steps)
    found = modalities.grid(context, views, pairs.test)(variables)
    these.add("teacher of both", found, parameters=models.count_parameters(variables))
    answers = {name: predictor(context, view)(variables)(pairs.train)[1] for name, view in views.items()}
    kd = objectives.from_logits(losses.kd, temperature=config.temperature)
    soft = objectives.weighted(label=(config.alpha, LABEL), kd=(1 - config.alpha, kd))
    for name, network in small(config, K).items():
        for kind in config.students:
            source, term, options = pairs.train, LABEL, {}
            if kind != "alone":
                logits = answers["both" if kind == "from-both" else name]
                source, term, options = data.with_fields(pairs.train, teacher_logits=logits), soft, CACHED
            score = modalities.grid(context, {name: network}, pairs.test)
            these.teach(
                f"{name}, {kind}", source, network, term, optimizer(config.steps), config.steps, score, **options
            )


def teach_towers(config, these, pairs, optimizer):
    """Two large towers that were trained without classes, and small ones."""
    teacher, student = (models.side_by_side(make(config, config.embedding)) for make in (big, small))
    variables = these.fit("towers", pairs.train, teacher, CLIP, optimizer(config.teacher_steps), config.teacher_steps)
    found = modalities.zero_shot(these.context, teacher, pairs)(variables)
    these.add("teacher: two towers", found, parameters=models.count_parameters(variables))
    known = modalities.embeddings(these.context, teacher, variables, pairs.train)
    taught, score = data.with_fields(pairs.train, **known), modalities.zero_shot(these.context, student, pairs)
    cached = models.cached(logits="teacher_image", features=("teacher_sound",))
    terms = {
        "features": (10.0, objectives.from_outputs(losses.clip_features, *FOUR)),
        "interactive": objectives.from_outputs(losses.clip_interactive, *FOUR, temperature=0.1),
        "affinity": objectives.from_outputs(losses.clip_affinity, *FOUR, temperature=0.1, teacher_temperature=0.1),
    }
    for kind in config.towers:
        term = CLIP if kind == "contrastive" else objectives.weighted(clip=CLIP, **terms)
        options = {} if kind == "contrastive" else {"teacher": cached, "teacher_variables": NO_VARIABLES}
        args = taught, student, term, optimizer(config.steps), config.steps, score
        these.teach(f"two towers, {kind}", *args, **options)


def procedure(config, run, logger, plan) -> None:
    pairs = modalities.open_pairs(config)
    context = Context(run, logger, plan, config.seed, config.batch_size, dict, dict, config)  # prepared already
    these = Trials(context, config.seeds, modalities.COLUMNS, [])
    for name, (found, count) in modalities.floors(pairs).items():
        these.add(name, found, parameters=count)
    optimizer = adamw_of(config.learning_rate)
    teach_classes(config, these, pairs, optimizer)
    if NO_TOWERS not in config.towers:
        teach_towers(config, these, pairs, optimizer)
    counts = f"{pairs.train.size:,} training and {pairs.test.size:,} test pairs"
    these.conclude(title=f"{counts}, {config.seeds} seed(s)")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
