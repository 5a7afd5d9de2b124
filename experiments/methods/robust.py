"""Robustness: a small convolutional network teaches a perceptron to hold against adversarial examples.

    python experiments/methods/robust.py --source "npz:mnist_{split}.npz"
    python experiments/methods/robust.py --source "npz:cifar100_{split}.npz" --classes 20 --epsilon 0.03
    python experiments/methods/robust.py --students trades rslad --radii 0.05 0.1 0.2 --name two-kinds

Compared on the test split: logistic regression; a teacher trained as usual, and one trained by TRADES; students alone,
distilled from the usual teacher, trained adversarially, by TRADES, and taught by the robust teacher with ARD, RSLAD and
IAD; and RSLAD over its lambda, all in one program. Columns are accuracies without an attack, under four attacks of
radius epsilon (in units of [0, 1] pixels, no pixel by more), and of images that none of the four changed the answer of.
The run's folder has `radius.png`, the worst case over the radius, and `tradeoff.png`, the figures over lambda.
"""

import dataclasses
import functools

import jax
import numpy as np

from jaxkd import models, reports
from jaxkd.experiment import NETWORKS, TRAINING, check_choice, flag, launch, train_phase, variables_of
from jaxkd.experiment.comparison import SMOKE, ComparisonConfig, compare
from jaxkd.experiment.domains import COUNT, FRACTION, NON_NEGATIVE
from jaxkd.experiment.robustness import COLUMNS, accuracies, attacker, linear_floor, over_radius, pixel_range
from jaxkd.experiment.trials import QUIET
from jaxkd.methods import robust
from jaxkd.train import students

KINDS = ("alone", "kd", "adversarial", "trades", "ard", "rslad", "iad")


@dataclasses.dataclass(frozen=True)
class Config(ComparisonConfig):
    name: str = "robust"
    source: str = "npz:mnist_{split}.npz"
    classes: int | None = None
    train_split: str = "train[:10%]"
    test_split: str = "test[:500]"
    crop: int = 0
    flip: bool = False
    teacher: str = "convnet_8_16"
    student: str = "mlp"
    teacher_epochs: int = 10
    epochs: int = 10
    temperature: float = 2.0
    students: tuple[str, ...] = flag(KINDS, "kinds of students", NETWORKS)
    epsilon: float = flag(0.1, "radius of the perturbations, in units of [0, 1] pixels", TRAINING, FRACTION)
    attack_steps: int = flag(7, "steps of the attack during trainings", TRAINING, COUNT)
    beta: float = flag(6.0, "weight of agreement in TRADES", TRAINING, NON_NEGATIVE)
    exponent: float = flag(0.1, "exponent of the teacher's probability in IAD", TRAINING, NON_NEGATIVE)
    lambdas: tuple[float, ...] = flag((0.0, 0.25, 0.5, 0.75, 1.0), "RSLAD's lambda in the sweep", TRAINING, FRACTION)
    radii: tuple[float, ...] = flag((0.05, 0.1, 0.2), "radii of radius.png, rising", TRAINING, FRACTION)
    apgd_steps: int = flag(20, "steps of APGD in the evaluation", TRAINING, COUNT)

    @property
    def columns(self):
        """Name -> column of each accuracy."""
        return COLUMNS

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)
        for name, values in (("radii", self.radii), ("lambdas", self.lambdas)):
            if list(values) != sorted(set(values)):
                raise ValueError(f"--{name} is {values}: give each number once, in rising order.")


SMALL = dict(SMOKE, name="robust-smoke", teacher="mlp", student="mlp", students=("iad",), lambdas=(0.5,), radii=(0.1,))
SMALL |= dict(attack_steps=1, apgd_steps=2)


def make_kinds(config, comparison, attack, teachers):
    """Kind of student -> its network in training, its objective, and further options of its training."""
    student, teacher = comparison.student, comparison.teacher
    usual, followed = (dict(teacher=teacher, teacher_variables=teachers[name]) for name in ("usual", "robust"))
    at_labels, asking = (robust.against_labels(student, attack, asked) for asked in (None, teacher))
    return {
        "alone": (student, comparison.label, {}),
        "kd": (student, comparison.kd, usual),
        "adversarial": (at_labels, robust.adversarial_training(), {}),
        "trades": (robust.against_itself(student, attack), robust.trades(config.beta), {}),
        "ard": (at_labels, robust.ard(config.temperature, 1 - config.alpha), followed),
        "rslad": (robust.against_teacher(student, attack, teacher), robust.rslad(), followed),
        "iad": (asking, robust.iad(config.exponent, config.temperature), followed),
    }


def over_lambda(config, comparison, kind, fooled):
    """Trains RSLAD's students of all lambdas in one program, adds their rows, and gives the means of two figures."""
    (model, _, options), tradeoff = kind, []
    points, steps = students.grid(lam=config.lambdas, seed=range(config.seeds)), comparison.updates(config.epochs)
    optimizer, key = comparison.optimizer(steps), jax.random.key(config.seed)
    given = dict(student=model, objective=lambda lam: (robust.rslad(lam), optimizer), points=points, key=key, **options)
    context = comparison.context
    found = variables_of(train_phase(context, "lambda", comparison.train, steps=steps, every=steps, **given, **QUIET))
    lost, nothing = context.run.lost["lambda"], dict.fromkeys(COLUMNS, float("nan"))
    for index, lam in enumerate(config.lambdas):
        rows = []
        for i in range(index * config.seeds, (index + 1) * config.seeds):
            one = students.pick_student(found, i)
            rows.append(nothing if i in lost else accuracies(fooled(one, comparison.test, config.epsilon)))
        comparison.trials.add(f"rslad, lambda {lam:g}", rows)
        tradeoff.append({name: np.mean([row[name] for row in rows]) for name in ("clean", "worst")})
    return tradeoff


def procedure(config, run, logger, plan) -> None:
    comparison = compare(config, run, logger, plan)
    context, trials, test = comparison.context, comparison.trials, comparison.test
    pixels = pixel_range(context, comparison.train)
    attack = robust.Attack(config.epsilon, 2.5 * config.epsilon / config.attack_steps, config.attack_steps, pixels)
    attack_of, curves = functools.partial(attacker, context, pixels=pixels, steps=config.apgd_steps), {}

    def figures(name, fooled, variables):
        """Accuracies of one network, whose worst case over the radius becomes a line of a plot."""
        scores, curve = over_radius(fooled, variables, test, config.epsilon, config.radii)
        curves.setdefault(name, []).append(curve)
        return scores

    # 1. The floor; a teacher trained as usual, and one trained by TRADES.
    (floor, weights), name = linear_floor(comparison.train, comparison.validation, pixels), "logistic regression"
    trials.add(name, figures(name, attack_of(floor), weights), parameters=models.count_parameters(weights))
    steps, teachers = comparison.updates(config.teacher_epochs), {}
    trained = {
        "usual": (comparison.teacher, comparison.label),
        "robust": (robust.against_itself(comparison.teacher, attack), robust.trades(config.beta)),
    }
    fooled = attack_of(comparison.teacher)
    for name, (model, term) in trained.items():
        row = f"teacher, {name}"
        found = teachers[name] = trials.fit(row, comparison.train, model, term, comparison.optimizer(steps), steps)
        trials.add(row, figures(row, fooled, found), parameters=models.count_parameters(found))

    # 2. The students.
    fooled = fooled if config.student == config.teacher else attack_of(comparison.student)
    kinds = make_kinds(config, comparison, attack, teachers)
    for kind in config.students:
        model, term, options = kinds[kind]
        comparison.teach(kind, term, model=model, score=functools.partial(figures, kind, fooled), **options)

    # 3. RSLAD over its lambda, and the plots.
    tradeoff = over_lambda(config, comparison, kinds["rslad"], fooled)
    reports.plot_lines(
        run.path / "radius.png",
        config.radii,
        {name: 100 * np.stack(each) for name, each in curves.items()},
        "radius of the perturbations (pixels from 0 to 1)",
        "worst-case accuracy (%)",
        title=test.name,
    )
    lines = {name: [100 * row[name] for row in tradeoff] for name in tradeoff[0]}
    reports.plot_lines(run.path / "tradeoff.png", config.lambdas, lines, "lambda", "accuracy (%)", title="RSLAD")
    comparison.conclude()


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
