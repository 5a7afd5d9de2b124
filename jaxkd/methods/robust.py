"""Robustness against adversarial examples: students that are attacked while they learn, alone or from a teacher.

An attack looks for a perturbation of each image that makes a loss of the student large; the student is then trained at
the perturbed images. A method is a student and a term:

    attack = robust.Attack(epsilon=0.1, step_size=0.025, steps=7, pixels=pixels)
    Madry's adversarial training:  robust.against_labels(network, attack), robust.adversarial_training()
    TRADES:                        robust.against_itself(network, attack), robust.trades(beta=6.0)
    ARD:                           robust.against_labels(network, attack), robust.ard(temperature=30.0)
    RSLAD:                         robust.against_teacher(network, attack, teacher), robust.rslad()
    IAD:                           robust.against_labels(network, attack, teacher), robust.iad()

The students have the network's own variables, and evaluated they are the network. In training they have its outputs
at the clean images, and a further feature `adversarial`, the logits at the perturbed ones. With epsilon 0 the two are
equal bit for bit, so that ARD is plain distillation, and Madry's training is plain training. Both passes of a training
step start from the same running statistics, which then move to the mean of what both would make of them.

References:
  Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
  https://arxiv.org/abs/1706.06083
  Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy"
  (TRADES), ICML 2019, https://arxiv.org/abs/1901.08573
  Goldblum, Fowl, Feizi, Goldstein, "Adversarially Robust Distillation" (ARD), AAAI 2020,
  https://arxiv.org/abs/1905.09747
  Zi, Zhao, Ma, Jiang, "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better" (RSLAD),
  ICCV 2021, https://arxiv.org/abs/2108.07969
  Zhu et al., "Reliable Adversarial Distillation with Unreliable Teachers" (IAD), ICLR 2022,
  https://arxiv.org/abs/2106.04928
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import losses, numerics, objectives
from jaxkd.keys import fold_name
from jaxkd.objectives.hyper import Number
from jaxkd.train import attacks
from jaxkd.train.perturbations import LINF, UNIT, Norm, Range, check_radius, check_steps
from jaxkd.types import TEACHER, Batch, Model, Outputs, PyTree, Term, Variables, as_variables

ADVERSARIAL = "adversarial"
"""Feature of the students: the logits at the perturbed images."""
TEACHER_ADVERSARIAL = "teacher_adversarial"
"""Feature of IAD's student: the teacher's logits at the perturbed images."""


class Attack(NamedTuple):
    """The attack of a training, projected gradient descent (`attacks.pgd`).

    Attributes:
      epsilon: Radius of the perturbations, in units of [0, 1] pixels; may be traced.
      step_size: Size of a step, in the same units; may be traced. The papers have a quarter of epsilon.
      steps: Number of steps.
      pixels: Values that the network reads where a pixel is black and where it is white.
      norm: `perturbations.LINF` or `perturbations.L2`.
    """

    epsilon: ArrayLike
    step_size: ArrayLike
    steps: int = 10
    pixels: Range = UNIT
    norm: Norm = LINF


Inner: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array | None, Batch], jax.Array]
"""(logits at the perturbed images, at the clean ones, the teacher's at the clean ones, batch) -> loss [B]."""


def against_labels(student: Model, attack: Attack, teacher: Model | None = None) -> Model:
    """Student that is attacked at its labels, from a random start: Madry's, ARD's and IAD's.

    max_d CE(S(x + d), y)

    During the attack the student is in training mode, as in the released code of ARD and IAD: a batch norm takes the
    statistics of the perturbed batch. Its running statistics stay as they are, which theirs do not.

    Args:
      student: Any classifier of images.
      attack: The attack.
      teacher: IAD's teacher, the model that the step has as its teacher; its logits at the perturbed images become the
        feature `teacher_adversarial`. None for other methods.

    Returns:
      A model with the student's variables.

    Raises:
      ValueError: If a number of the attack is outside its domain; by the model, if there is no key in training.
    """
    inner: Inner = lambda adversarial, clean, teacher, batch: losses.cross_entropy(adversarial, batch["label"])  # noqa: E731
    return _attacked(student, attack, inner, teacher, train=True, uniform=True, answers=teacher is not None)


def against_itself(student: Model, attack: Attack) -> Model:
    """Student that is attacked at its own answers to the clean images: TRADES'.

    max_d KL(S(x) || S(x + d))

    The attack starts from a little noise, since the loss has no slope at d = 0. During it the student is in evaluation
    mode, as in the released code.

    Args:
      student: Any classifier of images.
      attack: The attack.

    Returns:
      A model with the student's variables.

    Raises:
      ValueError: As `against_labels`.
    """
    inner: Inner = lambda adversarial, clean, teacher, batch: losses.kd(adversarial, clean, temperature=1.0)  # noqa: E731
    return _attacked(student, attack, inner, None, train=False, uniform=False, answers=False)


def against_teacher(student: Model, attack: Attack, teacher: Model) -> Model:
    """Student that is attacked at its teacher's answers to the clean images: RSLAD's.

    max_d KL(T(x) || S(x + d)), the teacher's distribution first: in PyTorch kl_div(log S(x + d), T(x))

    The attack starts from a little noise, and the student is in evaluation mode during it, as in the released code.

    Args:
      student: Any classifier of images.
      attack: The attack.
      teacher: The model that the step has as its teacher, also one of cached answers.

    Returns:
      A model with the student's variables, which reads the teacher's from the step.

    Raises:
      ValueError: As `against_labels`; by the model, if there is no teacher in the batch.
    """
    inner: Inner = lambda adversarial, clean, teacher, batch: losses.kd(adversarial, teacher, temperature=1.0)  # type: ignore[arg-type]  # noqa: E731
    return _attacked(student, attack, inner, teacher, train=False, uniform=False, answers=False)


def _attacked(
    student: Model, attack: Attack, inner: Inner, teacher: Model | None, *, train: bool, uniform: bool, answers: bool
) -> Model:
    """The student whose outputs have the logits at perturbed images, and the teacher's if `answers`."""
    check_radius("epsilon", attack.epsilon)
    check_radius("the step size", attack.step_size)
    check_steps(attack.steps)

    def perturbed(variables: Variables, batch: Batch, known: jax.Array | None, key: jax.Array) -> Batch:
        """The batch with perturbed images, to which no gradient passes."""
        fixed = jax.lax.stop_gradient(variables)
        ball = attack.pixels.ball(batch["image"], attack.epsilon, attack.norm)
        clean = student.apply(fixed, batch, key, train)[0].logits
        loss = lambda outputs, batch: inner(outputs.logits, clean, known, batch)  # noqa: E731
        attempts = attacks.on_model(student, fixed, batch, loss, attack.pixels, train=train, key=key)
        draw = fold_name(key, "attack")
        start = ball.start(draw) if uniform else ball.noise(draw)
        found = attacks.pgd(attempts, ball, start, steps=attack.steps, step_size=attack.step_size)
        return {**batch, "image": attack.pixels.move(batch["image"], jax.lax.stop_gradient(found.perturbation))}

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables, given = as_variables(variables), batch.get(TEACHER)
        batch = {name: x for name, x in batch.items() if name != TEACHER}
        if not train:
            return student.apply(variables, batch, key, False)
        if key is None or (teacher is not None and given is None):
            missing = "a key" if key is None else "the variables of its teacher"
            raise ValueError(
                f"this student is attacked in training, which needs {missing}: train it by train.make_train_step or "
                "experiment.train_phase, with its teacher if it has one."
            )
        ask = lambda batch: teacher.apply(as_variables(given), batch, None, False)[0].logits  # type: ignore[union-attr]  # noqa: E731
        known = None if teacher is None or answers else ask(batch)
        moved = perturbed(variables, batch, known, key)
        outputs, state = student.apply(variables, batch, key, True)
        other, changed = student.apply(variables, moved, key, True)
        features = {**outputs.features, ADVERSARIAL: other.logits}
        if answers:
            features[TEACHER_ADVERSARIAL] = jax.lax.stop_gradient(ask(moved))
        return outputs._replace(features=features), jax.tree.map(_middle, state, changed)

    return Model(student.init, apply, reads_teacher=teacher is not None)


def _middle(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean of running statistics; counters and the like are equal on both sides."""
    return (x + y) / 2 if jnp.issubdtype(x.dtype, jnp.floating) else x


_LOGITS = f"student.{ADVERSARIAL}"


def adversarial_training() -> Term:
    """Term of Madry's adversarial training: cross-entropy at the perturbed images.

    CE(S(x'), y)

    Returns:
      A term for a student of `against_labels`.
    """
    return objectives.from_outputs(losses.cross_entropy, _LOGITS, "batch.label")


def trades(beta: Number = 6.0) -> Term:
    """Term of TRADES: cross-entropy at the clean images, and agreement of perturbed with clean ones.

    CE(S(x), y) + beta KL(S(x) || S(x'))

    Both arguments of the KL are trained, as in the released code. beta is the paper's 1 / lambda.

    Args:
      beta: Weight of the agreement; 0 is plain training.

    Returns:
      A term for a student of `against_itself`.
    """
    agreement = objectives.from_outputs(losses.kd, _LOGITS, "student.logits", temperature=1.0)
    return objectives.weighted(clean=objectives.from_labels(losses.cross_entropy), robust=(beta, agreement))


def ard(temperature: Number = 30.0, alpha: Number = 1.0) -> Term:
    """Term of ARD: distillation of the teacher's clean answers at the perturbed images, and clean labels.

    alpha T^2 KL(T(x) || S(x')) + (1 - alpha) CE(S(x), y),  softmax(z / T) in the KL

    The released code divides the KL by the number of classes, by its mean over all entries.

    Args:
      temperature: T > 0.
      alpha: Weight of the distillation.

    Returns:
      A term for a student of `against_labels`.
    """
    kd = objectives.from_outputs(losses.kd, _LOGITS, "teacher.logits", temperature=temperature)
    label = objectives.from_labels(losses.cross_entropy)
    rest = (lambda step: 1 - alpha(step)) if callable(alpha) else 1 - alpha
    return objectives.weighted(robust=(alpha, kd), clean=(rest, label))


def rslad(lam: Number = 5 / 6) -> Term:
    """Term of RSLAD: the teacher's clean answers at clean and at perturbed images, without labels.

    (1 - lam) KL(T(x) || S(x)) + lam KL(T(x) || S(x'))

    The released code divides both by the number of classes, and multiplies CIFAR-100's by 10 to make up for it.

    Args:
      lam: Weight of the perturbed images, 0..1; 0 is plain distillation at T = 1.

    Returns:
      A term for a student of `against_teacher`.
    """
    rest = (lambda step: 1 - lam(step)) if callable(lam) else 1 - lam
    clean, robust = (
        objectives.from_outputs(losses.kd, path, "teacher.logits", temperature=1.0)
        for path in ("student.logits", _LOGITS)
    )
    return objectives.weighted(clean=(rest, clean), robust=(lam, robust))


def iad(beta: Number = 0.1, temperature: Number = 1.0) -> Term:
    """Term of IAD: ARD as far as the teacher can be relied on at the student's perturbed images, else self-agreement.

    w T^2 KL(T(x) || S(x')) + (1 - w) T^2 KL(S(x) || S(x')),  w = T(x')_y^beta

    A teacher that is certain of the label at a perturbed image is followed as in ARD; of one that excludes it nothing
    is taken. The released code leaves the teacher's part unweighted, and its own w is 1 in the first epochs: give a
    schedule of beta that starts with 0 for that.

    Args:
      beta: Exponent of the teacher's probability, 0 or more; 0 is ARD.
      temperature: T > 0.

    Returns:
      A term for a student of `against_labels` with a teacher.
    """
    paths = (_LOGITS, "student.logits", "teacher.logits", f"student.{TEACHER_ADVERSARIAL}", "batch.label")
    return objectives.from_outputs(_introspective, *paths, beta=beta, temperature=temperature)


def _introspective(
    adversarial: jax.Array,
    clean: jax.Array,
    teacher_clean: jax.Array,
    teacher_adversarial: jax.Array,
    labels: jax.Array,
    *,
    beta: ArrayLike = 0.1,
    temperature: ArrayLike = 1.0,
) -> jax.Array:
    """[B], as `iad` says; w is computed from log-probabilities, so that a certain teacher's is exact."""
    log_p = -losses.cross_entropy(teacher_adversarial, labels)
    w = jax.lax.stop_gradient(jnp.exp(numerics.per_example(beta, log_p) * log_p))
    followed = losses.kd(adversarial, teacher_clean, temperature=temperature)
    own = losses.kd(adversarial, clean, temperature=temperature)
    return w * followed + (1 - w) * own
