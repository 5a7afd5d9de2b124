"""Robust accuracies of experiments: networks under several attacks, and over the radius of the perturbations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, losses, parallel
from jaxkd.experiment.baselines import logistic_regression
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import PER_DEVICE
from jaxkd.experiment.images import first_rows
from jaxkd.experiment.trials import PERCENT, Column, Scores
from jaxkd.train import attacks
from jaxkd.train.perturbations import LINF, Norm, Range
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables

COLUMNS: Mapping[str, Column] = {
    "clean": Column("clean %", PERCENT),
    "fgsm": Column("FGSM %", PERCENT),
    "pgd": Column("PGD-20 %", PERCENT),
    "apgd_ce": Column("APGD-CE %", PERCENT),
    "apgd_dlr": Column("APGD-DLR %", PERCENT),
    "worst": Column("worst %", PERCENT),
}
"""Name -> column of each accuracy; `worst` counts images that no attack changed the answer of."""

_PGD_STEPS = 20

Fooled: TypeAlias = Callable[[Variables, data.Source, float], dict[str, np.ndarray]]
"""(variables, source, epsilon) -> name of each attack -> booleans [N], true where the network ends up wrong."""


def pixel_range(context: Context, source: data.Source) -> Range:
    """Values that networks read of black and of white pixels, found by preparing such pictures.

    Args:
      context: The context, whose preparation for evaluations is an affine function of each channel.
      source: The images, in uint8, or in floats of 0..1 or 0..255.

    Returns:
      The range, one pair for each channel.
    """
    batch = {name: np.asarray(x[:1]) for name, x in first_rows(source, 1).items()}
    ends = []
    for value in (0, _white(source)):
        flat = {**batch, "image": np.full_like(batch["image"], value)}
        ends.append(jnp.asarray(context.eval_prepare(flat)["image"])[0, 0, 0])
    return Range(*ends)


def attacker(context: Context, model: Model, pixels: Range, *, steps: int, norm: Norm = LINF) -> Fooled:
    """Makes the function that attacks a network with FGSM, PGD of 20 steps, and APGD on two losses.

    An image counts as fooled if the network is wrong about it without a perturbation, or at any point that the attack
    looked at, so that no attack leaves more right answers than there were. The program is compiled once for all
    variables and radii.

    Args:
      context: The context of the experiment's trainings.
      model: The network, of at least three classes.
      pixels: Values that it reads of black and white pixels.
      steps: Steps of APGD.
      norm: Norm of the perturbations.

    Returns:
      The function.
    """

    def each(_: None, given: tuple[Variables, jax.Array], batch: Batch) -> tuple[dict, jax.Array, jax.Array]:
        variables, epsilon = given
        rows = context.eval_prepare(batch)
        ball = pixels.ball(rows["image"], epsilon, norm)
        attempts = attacks.on_model(model, variables, rows, _cross_entropy, pixels)
        start = ball.start(jax.random.fold_in(jax.random.key(context.seed), batch["id"][0]))
        # APGD looks at every image twice, once for each loss, in one loop: half as much to compile.
        twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), dict(rows))
        both = attacks.on_model(model, variables, twice, _half_dlr, pixels)
        wide = pixels.ball(twice["image"], epsilon, norm)
        apgd = attacks.apgd(both, wide, jnp.concatenate([start, start]), steps=steps).fooled
        found = {
            "fgsm": attacks.fgsm(attempts, ball).fooled,
            "pgd": attacks.pgd(attempts, ball, start, steps=_PGD_STEPS, step_size=2.5 * epsilon / _PGD_STEPS).fooled,
            "apgd_ce": apgd[: len(start)],
            "apgd_dlr": apgd[len(start) :],
        }
        wrong = attempts(ball.clean()).fooled
        return {"clean": wrong, **{name: wrong | x for name, x in found.items()}}, batch["id"], batch["mask"]

    plan = parallel.with_jit(context.plan.mesh)
    step = plan.compile(each, donate_state=False)

    def fooled(variables: Variables, source: data.Source, epsilon: float) -> dict[str, np.ndarray]:
        placed = plan.put((variables, jnp.float32(epsilon)))
        batches = data.prefetch(data.eval_batches(source, PER_DEVICE * plan.mesh.size), plan.place)
        rows = [jax.device_get(step(None, placed, batch)) for batch in batches]
        order = np.argsort(np.concatenate([ids[mask] for _, ids, mask in rows]))
        return {name: np.concatenate([x[name][mask] for x, _, mask in rows])[order] for name in rows[0][0]}

    return fooled


def _cross_entropy(outputs: Outputs, batch: Batch) -> jax.Array:
    return losses.cross_entropy(outputs.logits, batch["label"])


def _half_dlr(outputs: Outputs, batch: Batch) -> jax.Array:
    """Cross-entropy of the first half of the rows, DLR of the second."""
    half = len(outputs.logits) // 2
    z, y = outputs.logits, batch["label"]
    return jnp.concatenate([losses.cross_entropy(z[:half], y[:half]), losses.dlr(z[half:], y[half:])])


def accuracies(fooled: Mapping[str, np.ndarray]) -> Scores:
    """Accuracies of one network, and the worst case over all attacks.

    Args:
      fooled: Name of each attack -> booleans [N].

    Returns:
      Name of each of `COLUMNS` -> fraction of the images.
    """
    worst = np.any(np.stack(list(fooled.values())), axis=0)
    return {name: float(1 - np.mean(x)) for name, x in {**fooled, "worst": worst}.items()}


def over_radius(
    fooled: Fooled, variables: Variables, source: data.Source, epsilon: float, radii: Sequence[float]
) -> tuple[Scores, np.ndarray]:
    """Accuracies of one network at a radius, and its worst case over several, which never rises.

    An image that is fooled within a small radius is fooled within a large one too, where the same perturbation is
    allowed.

    Args:
      fooled: The function that attacks, as `attacker` makes it.
      variables: The network's variables.
      source: The images.
      epsilon: The radius of the accuracies.
      radii: Radii in rising order.

    Returns:
      As `accuracies`, and the worst-case accuracy [R] at each radius.
    """
    found = {radius: fooled(variables, source, radius) for radius in {epsilon, *radii}}
    worst = np.stack([np.any(np.stack(list(found[radius].values())), axis=0) for radius in radii])
    return accuracies(found[epsilon]), 1 - np.mean(np.logical_or.accumulate(worst), axis=1)


def linear_floor(train: data.Source, validation: data.Source, pixels: Range) -> tuple[Model, Variables]:
    """Trains logistic regression on pixels, as a model of prepared images, so that it can be attacked too.

    Args:
      train: Training images.
      validation: Images on which its strength is chosen.
      pixels: Values of black and white pixels in prepared images.

    Returns:
      The model and its variables.

    Raises:
      ValueError: If there are fewer than three classes, which `attacker` needs.
    """
    if train.num_classes < 3:
        raise ValueError(
            f"{train.name} has {train.num_classes} classes, but APGD's difference of logits ratio needs three: give "
            "a --source of 3 classes or more, and --classes of 3 or more."
        )
    x, xv = (
        s.read(np.arange(s.size))["image"].reshape(s.size, -1) / np.float32(_white(train)) for s in (train, validation)
    )
    centre, labels = x.mean(axis=0), [data.labels_of(s) for s in (train, validation)]
    line = logistic_regression(
        x - centre, labels[0], (xv - centre, labels[1]), train.num_classes, strengths=(1e-3, 1e-2, 3e-2)
    )
    # Its log-probabilities are its logits but for a number of each row, which no softmax sees.
    kernel = line.logits(np.eye(x.shape[1], dtype=np.float32)) - line.logits(np.zeros((1, x.shape[1])))
    variables = Variables({"kernel": jnp.asarray(kernel), "bias": jnp.asarray(line.logits(-centre[None])[0])}, {})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        x, given = pixels.to_unit(batch["image"]), variables.params
        return Outputs(x.reshape(x.shape[0], -1) @ given["kernel"] + given["bias"][None], {}), variables.state

    return Model(lambda key, batch: variables, apply), variables


def _white(source: data.Source) -> int:
    """The number of a white pixel, as `images.to_unit` has it: 255, or 1 of floats up to 1."""
    images = source.read(np.arange(min(source.size, 512)))["image"]
    return 255 if images.dtype == np.uint8 or images.max() > 1 else 1
