"""Formats of the networks' products: a comparison of methods does not depend on them by more than its noise."""

import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxkd import losses, models, objectives
from jaxkd.experiment.flags import StepOptions
from jaxkd.train import multistep, students
from jaxkd.types import Variables

SEEDS, STEPS, LABELS = 6, 400, 100
POINTS = students.grid(alpha=[1.0, 0.1], seed=range(SEEDS))  # alone, distilled


def digits():
    found = load_digits()
    return {"image": (found.images[..., None] / 16).astype(np.float32), "label": found.target.astype(np.int32)}


def batches(rows, size):
    """STEPS batches of some of the images, as a bundle."""
    picked = np.random.default_rng(0).choice(rows, (size, STEPS))
    return {name: x[picked] for name, x in digits().items()}


def accuracies(precision):
    """Accuracy on the last 797 digits of each point's student, [2, SEEDS], by rows alone and distilled."""
    options = StepOptions(precision=precision)
    big, small = (options.cast_student(models.mlp(10, hidden=(width,))) for width in (128, 12))
    everything = {name: x[1000:] for name, x in digits().items()}

    def trained(student, teacher, teacher_variables, points, rows):
        def parts(alpha):
            term = objectives.weighted(
                label=(alpha, objectives.from_labels(losses.cross_entropy)),
                kd=(1 - alpha, objectives.from_logits(losses.kd, temperature=4.0)),
            )
            return student, teacher, term, optax.adam(1e-2)

        sweep, bundle = students.sweep(parts, points), batches(rows, 32)
        first = {name: x[:, 0] for name, x in bundle.items()}
        state = sweep.init(key=jax.random.key(0), batch=first, teacher_variables=teacher_variables)
        step = jax.jit(multistep.scan_steps(students.vmap_students(sweep.make_step())))
        state, _ = step(state, teacher_variables, bundle)
        variables = Variables(state.params["student"], state.state["student"])
        logits = jax.jit(jax.vmap(lambda v: student.apply(v, everything, None, False)[0].logits))(variables)
        return variables, np.mean(np.argmax(np.asarray(logits), -1) == everything["label"], axis=-1)

    with options.products():
        alone = students.grid(alpha=[1.0], seed=[0])
        teacher_variables, _ = trained(big, big, models.init(big, jax.random.key(1), everything), alone, 1000)
        teacher_variables = jax.tree.map(lambda x: x[0], teacher_variables)
        _, found = trained(small, big, teacher_variables, POINTS, LABELS)
    return found.reshape(2, SEEDS)


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_bfloat16_changes_a_comparison_by_less_than_its_noise(precision):
    usual, other = (np.diff(accuracies(p), axis=0)[0] for p in ("tf32", precision))
    noise = np.std(usual, ddof=1) / SEEDS**0.5
    assert 0 < noise < 0.02
    assert abs(usual.mean() - other.mean()) < noise
