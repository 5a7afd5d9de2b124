"""Across domains: a teacher of one kind of pictures labels another kind, without a single label of that kind.

    python experiments/methods/domains.py --target npz:mnist_{split}.npz
    python experiments/methods/domains.py --source folder:SCANS --target folder:PHOTOS --teacher-size 32 --image-size 48

The teacher learns the labelled pictures of `--source`, by default scikit-learn's 8 x 8 digits. It answers for the ones
of `--target` at its own resolution and with its own channels. Students see these as they are and learn from its hard
answers: all of them, those of which it is certain, and as many of each class; from its soft answers; or in generations
of noisy students, each of which learns, with RandAugment, the source's labels and what the one before is certain of.
Beside them stand logistic regression, a student of the source's labels alone, and one with the target's own labels, as
a bound. The target's labels are used by that one and by the test alone.

Reference: Xie et al., "Self-training with Noisy Student improves ImageNet classification", CVPR 2020,
https://arxiv.org/abs/1911.04252
"""

import dataclasses

from jaxkd import models, objectives
from jaxkd.data import UncertainError, pseudo_labels, with_fields, with_pseudo_labels
from jaxkd.data.splits import say
from jaxkd.experiment import DATA, NETWORKS, TRAINING, check_choice, flag, launch
from jaxkd.experiment.comparison import SMOKE, SYNTHETIC, ComparisonConfig
from jaxkd.experiment.domains import COUNT, FRACTION, SIDE
from jaxkd.experiment.trials import CACHED
from jaxkd.experiment.two_domains import DIGITS, open_domains
from jaxkd.losses import kd
from jaxkd.methods import noisy_student

KINDS = ("source-labels", "hard", "certain", "balanced", "soft", "noisy", "target-labels")


@dataclasses.dataclass(frozen=True)
class Config(ComparisonConfig):
    name: str = "domains"
    source: str = flag(DIGITS, "labelled pictures: digits, which are scikit-learn's, or as for --target", DATA)
    source_split: str = flag("train", "split of the labelled pictures", DATA)
    source_validation_split: str = flag("validation", "split of these for the strength of the floor", DATA)
    target: str = flag("npz:mnist_{split}.npz", "pictures to label: a TFDS name, npz:PATH, folder:PATH", DATA)
    train_split: str = flag("train[:5%]", "split of the target that students see, without its labels", DATA)
    validation_split: str = flag("train[99%:]", "split of the target, held out and not read by any network", DATA)
    classes: int | None = None
    image_size: int | None = 14
    teacher_size: int | None = flag(8, "height and width that the teacher sees; --image-size if absent", DATA, SIDE)
    flip: bool = False
    teacher: str = "convnet"
    teacher_epochs: int = 30
    epochs: int = 6
    batch_size: int = 64
    threshold: float = flag(0.9, "least probability of a certain answer", TRAINING, FRACTION)
    noisy_threshold: float = flag(0.3, "the same for balanced answers and noisy students", TRAINING, FRACTION)
    per_class: int = flag(200, "pictures of each class for these; of a rarer one some count again", TRAINING, COUNT)
    generations: int = flag(2, "generations of noisy students", TRAINING, COUNT)
    students: tuple[str, ...] = flag(KINDS, "kinds of students", NETWORKS)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)


SMALL = dict(SMOKE, name="domains-smoke", source_validation_split="test", target=SYNTHETIC, image_size=12)
SMALL |= dict(train_split="train", validation_split="test", per_class=8, generations=1, students=("noisy",))
SMALL |= dict(teacher_epochs=20, learning_rate=0.03)  # until it is certain of something


def teach_noisy(config, domains, teacher) -> None:
    """Trains the generations of each seed, and adds a row for each generation."""
    compared, scores = domains.compared, {}
    for seed in range(config.seeds):

        def learn(number, model, rows, labels, seed=seed):
            return domains.learn_noised(f"noisy-{seed}-generation-{number}", model, rows, labels, seed)

        chain = noisy_student.generations(
            teacher,
            [compared.student] * config.generations,
            answer=lambda model, variables: compared.answers(model, variables, compared.train),
            learn=learn,
            threshold=config.noisy_threshold,
            per_class=config.per_class,
        )
        try:
            next(chain)  # the teacher, which has its row
            for one in chain:
                scores.setdefault(one.number, []).append(compared.scorer(one.model)(one.variables))
                parameters = models.count_parameters(one.variables)
        except UncertainError as error:
            say(f"the noisy students of seed {seed} end there: {error}")
    for number, found in scores.items():
        compared.trials.add(f"noisy-generation-{number}", found, parameters=parameters)


def procedure(config, run, logger, plan) -> None:
    domains = open_domains(config, run, logger, plan)
    compared = domains.compared
    train, label, classes = compared.train, compared.label, compared.train.num_classes

    # 1. The floor, the teacher, and its answers for the target's pictures.
    domains.add_floor()
    teacher = domains.fit_teacher()
    logits = compared.answers(*teacher, train)

    def teach_on_answers(name, threshold, balance, per_class=None):
        """Students of the target's pictures of whose class the teacher is certain, with its answers as labels."""
        try:
            rows, labels = pseudo_labels(logits, threshold=threshold, balance=balance, per_class=per_class)
        except UncertainError as error:
            return say(f"{name} is left out: {error}")
        say(f"{name}: the teacher is certain of {len(set(rows))} of {len(train)} pictures, at {threshold} or more.")
        return compared.teach(name, label, source=with_pseudo_labels(train, rows, labels, classes))

    # 2. The students.
    soft = objectives.from_logits(kd, temperature=config.temperature)
    kinds = {
        "source-labels": lambda name: compared.teach(name, label, source=domains.labelled),
        "hard": lambda name: teach_on_answers(name, 0.0, "none"),
        "certain": lambda name: teach_on_answers(name, config.threshold, "none"),
        "balanced": lambda name: teach_on_answers(name, config.noisy_threshold, "repeat", config.per_class),
        "soft": lambda name: compared.teach(name, soft, source=with_fields(train, teacher_logits=logits), **CACHED),
        "noisy": lambda name: teach_noisy(config, domains, teacher),
        "target-labels": lambda name: compared.teach(name, label),
    }
    for name in config.students:
        kinds[name](name)
    compared.conclude()


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
