"""Attacks: perturbations of images that make a loss large, as pure functions around `lax.scan`.

    pixels = perturbations.Range(black, white)  # what the network reads where a pixel is black, and where it is white
    ball = pixels.ball(batch["image"], epsilon=8 / 255)
    attempts = attacks.on_model(model, variables, batch, loss, pixels)
    found = attacks.apgd(attempts, ball, ball.start(key), steps=50)

Epsilon and step sizes may be traced, so other ones compile nothing again. The network's variables get no gradient, and
its running statistics do not move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.train.perturbations import UNIT, Ball, Range, check_radius, check_steps
from jaxkd.types import Batch, Model, Outputs, Variables

MOMENTUM = 0.75
"""Weight alpha of the new direction in a step of APGD; the last step's has the rest."""
RISING = 0.75
"""Least share rho of steps that must raise the loss for APGD to keep its step size."""


class Attempt(NamedTuple):
    """Effect of perturbations.

    Attributes:
      loss: [B], the loss that the attack makes large.
      fooled: Booleans [B], true where the network gives another class than the label.
    """

    loss: jax.Array
    fooled: jax.Array


Attempts: TypeAlias = Callable[[jax.Array], Attempt]
"""Perturbations [B, ...] -> their effect; each example's depends on its own perturbation."""

AttackedLoss: TypeAlias = Callable[[Outputs, Batch], jax.Array]
"""(outputs at the perturbed images, batch) -> [B]."""


class Found(NamedTuple):
    """Result of an attack.

    Attributes:
      perturbation: [B, ...] in units of [0, 1] pixels.
      loss: [B], the loss there.
      fooled: Booleans [B], true where the network was fooled there or at any other point that the attack looked at.
    """

    perturbation: jax.Array
    loss: jax.Array
    fooled: jax.Array


def on_model(
    model: Model,
    variables: Variables,
    batch: Batch,
    loss: AttackedLoss,
    pixels: Range = UNIT,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    field: str = "image",
) -> Attempts:
    """Makes the function that attacks of a classifier make large.

    Args:
      model: The classifier.
      variables: Its variables; no gradient reaches them, and its state stays as it is.
      batch: The batch with the prepared images and `label` [B], integers.
      loss: The loss that is attacked.
      pixels: Values of black and white pixels in the prepared images.
      train: Whether the network is in training mode, where a batch norm takes the statistics of the perturbed batch.
      key: Key of its dropout in training mode, the same in all steps.
      field: Field of the batch with the images.

    Returns:
      Perturbations -> attempt.
    """
    fixed = jax.lax.stop_gradient(variables)

    def attempt(perturbation: jax.Array) -> Attempt:
        moved = {**batch, field: pixels.move(batch[field], perturbation)}
        outputs, _ = model.apply(fixed, moved, key, train)
        return Attempt(loss(outputs, batch), jnp.argmax(outputs.logits, axis=-1) != batch["label"])

    return attempt


def _slope(attempts: Attempts, x: jax.Array) -> tuple[Attempt, jax.Array]:
    """The attempt at some perturbations, and the gradient of each example's loss."""

    def total(x: jax.Array) -> tuple[jax.Array, Attempt]:
        attempt = attempts(x)
        return jnp.sum(attempt.loss), attempt

    (_, attempt), gradient = jax.value_and_grad(total, has_aux=True)(x)
    return attempt, gradient


def fgsm(attempts: Attempts, ball: Ball) -> Found:
    """Fast gradient sign method: one step to the border of the ball.

    x = P(epsilon direction(grad f(0))), where direction is the sign for Linf

    Args:
      attempts: The function that is attacked, as `on_model` makes it.
      ball: The perturbations that are allowed.

    Returns:
      The perturbation after the step.

    Reference:
      Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015,
      https://arxiv.org/abs/1412.6572
    """
    _, gradient = _slope(attempts, ball.clean())
    x = ball.project(ball.epsilon * ball.norm.direction(gradient))
    return Found(x, *attempts(x))


def pgd(
    attempts: Attempts, ball: Ball, start: jax.Array, *, steps: int, step_size: ArrayLike, keep_best: bool = False
) -> Found:
    """Projected gradient descent on the negative loss, with steps of one size.

    x_{k+1} = P(x_k + eta direction(grad f(x_k)))

    Args:
      attempts: The function that is attacked, as `on_model` makes it.
      ball: The perturbations that are allowed.
      start: First perturbations [B, ...]: `ball.start(key)`, `ball.noise(key)` or `ball.clean()`.
      steps: Number of steps, static.
      step_size: eta in units of [0, 1] pixels; may be traced.
      keep_best: Whether the perturbation of the largest loss is returned, none at all included, in place of the last.

    Returns:
      The perturbation, and whether any on the way fooled the network.

    Raises:
      ValueError: If there is no step, or the step size is negative or no scalar.

    Reference:
      Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR
      2018, https://arxiv.org/abs/1706.06083
    """
    check_steps(steps)
    check_radius("the step size", step_size)
    eta = jnp.asarray(step_size, start.dtype)

    def step(carry: tuple[jax.Array, Found], _: None) -> tuple[tuple[jax.Array, Found], None]:
        x, best = carry
        attempt, gradient = _slope(attempts, x)
        return (ball.project(x + eta * ball.norm.direction(gradient)), _better(best, x, attempt)), None

    start = ball.project(start)
    clean = Found(ball.clean(), *attempts(ball.clean())) if keep_best else _nothing(start)
    (x, best), _ = jax.lax.scan(step, (start, clean), length=steps)
    last = attempts(x)
    best = _better(best, x, last)
    return best if keep_best else Found(x, last.loss, best.fooled)


def _nothing(like: jax.Array) -> Found:
    """A result that any attempt is better than."""
    return Found(jnp.zeros_like(like), jnp.full(like.shape[:1], -jnp.inf, like.dtype), jnp.zeros(like.shape[:1], bool))


def _better(best: Found, x: jax.Array, attempt: Attempt) -> Found:
    """The better of two results of each example, fooled if either was."""
    more = attempt.loss > best.loss
    return Found(
        jnp.where(numerics.per_example(more, x), x, best.perturbation),
        jnp.where(more, attempt.loss, best.loss),
        best.fooled | attempt.fooled,
    )


def checkpoints(steps: int) -> np.ndarray:
    """Numbers of steps after which APGD decides on its step size.

    w_j = ceil(p_j N),  p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)

    Args:
      steps: N.

    Returns:
      Integers w_1 < w_2 < ... up to N.
    """
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = np.ceil(np.round(np.asarray(p[1:]) * steps, 6)).astype(int)
    return np.unique(w[w <= steps])


class _Search(NamedTuple):
    """State of APGD; all but the perturbations and gradients have one entry an example, [B]."""

    x: jax.Array
    previous: jax.Array
    loss: jax.Array
    gradient: jax.Array
    best: Found
    best_gradient: jax.Array
    eta: jax.Array
    rises: jax.Array  # steps since the last checkpoint that raised the loss
    best_then: jax.Array  # the best loss at the last checkpoint
    halved: jax.Array  # whether the step size was halved there


def apgd(attempts: Attempts, ball: Ball, start: jax.Array, *, steps: int) -> Found:
    """Auto-PGD: projected gradient descent with momentum, whose step size is halved where the loss stops rising.

    z = P(x_k + eta direction(grad f(x_k))),  x_{k+1} = P(x_k + a (z - x_k) + (1 - a) (x_k - x_{k-1})),  a = 0.75

    The first step has a = 1 and eta = 2 epsilon. At each checkpoint w_j (`checkpoints`) an example's eta is halved and
    its search goes on from its best point, if fewer than 0.75 (w_j - w_{j-1}) steps since the last checkpoint raised
    the loss, or if eta and the best loss are those of that checkpoint. The attacked loss is a choice of the caller:
    AutoAttack takes the cross-entropy and `losses.dlr`. Checkpoints and conditions are the paper's; the authors' code
    rounds checkpoints down, and halves at equality too.

    Args:
      attempts: The function that is attacked, as `on_model` makes it.
      ball: The perturbations that are allowed.
      start: First perturbations [B, ...], such as `ball.start(key)`.
      steps: Number of steps N, static.

    Returns:
      The perturbation of the largest loss, none at all included, and whether any on the way fooled the network.

    Raises:
      ValueError: If there is no step.

    Reference:
      Croce, Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
      ICML 2020, https://arxiv.org/abs/2003.01690
    """
    check_steps(steps)
    start = ball.project(start)
    # The first pass of the loop looks at the start itself, since without a gradient nothing moves.
    flat, none = jnp.zeros_like(start), jnp.zeros(start.shape[:1], start.dtype)
    nothing, eta = _nothing(start), none + 2 * ball.epsilon
    search = _Search(start, start, none + jnp.inf, flat, nothing, flat, eta, none, nothing.loss, nothing.fooled)
    ends = checkpoints(steps)
    spans = np.zeros(steps + 1, np.float32)  # length of the stretch that ends with a step, or 0
    spans[ends] = np.diff(ends, prepend=0)
    momentum = np.where(np.arange(steps + 1) < 2, 1, MOMENTUM)

    def step(s: _Search, now: tuple[jax.Array, ...]) -> tuple[_Search, None]:
        a, span, first = now
        per_example = lambda v: numerics.per_example(v, s.x)  # noqa: E731
        z = ball.project(s.x + per_example(s.eta) * ball.norm.direction(s.gradient))
        x = ball.project(s.x + a * (z - s.x) + (1 - a) * (s.x - s.previous))
        attempt, gradient = _slope(attempts, x)
        more = attempt.loss > s.best.loss
        best, best_gradient = _better(s.best, x, attempt), jnp.where(per_example(more), gradient, s.best_gradient)
        rises = s.rises + (attempt.loss > s.loss)
        halve = (span > 0) & ((rises < RISING * span) | (~s.halved & (s.best_then >= best.loss)))
        back = per_example(halve)
        return _Search(
            jnp.where(back, best.perturbation, x),
            s.x,
            jnp.where(halve, best.loss, attempt.loss),
            jnp.where(back, best_gradient, gradient),
            best,
            best_gradient,
            jnp.where(halve, s.eta / 2, s.eta),
            jnp.where(span > 0, 0, rises),
            jnp.where((span > 0) | first, best.loss, s.best_then),
            jnp.where(span > 0, halve, s.halved | first),
        ), None

    given = tuple(jnp.asarray(v, start.dtype) for v in (momentum, spans))
    found, _ = jax.lax.scan(step, search, (*given, jnp.arange(steps + 1) == 0))
    return _better(found.best, ball.clean(), attempts(ball.clean()))
