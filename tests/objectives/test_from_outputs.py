"""Losses of the library as terms: what `from_outputs` picks is what the loss gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, objectives
from jaxkd.types import Outputs, Variables

B, K = 6, 5
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def outputs():
    """Logits, two maps and an embedding."""
    shapes = {"stage1": (B, 4, 4, 3), "stage2": (B, 2, 2, 3), "pooled": (B, 8)}
    features = {name: RNG.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    return Outputs(RNG.standard_normal((B, K)).astype(np.float32), features)


STUDENT, TEACHER = outputs(), outputs()
BATCH = {"label": np.arange(B) % K, "labelled": np.arange(B) < 2}
S, T, Y = STUDENT.logits, TEACHER.logits, BATCH["label"]
LAYERS = ["stage1", "stage2"]


def value(term, batch=BATCH):
    owned = term.init(KEY, STUDENT, TEACHER, batch)
    assert owned.params == {}
    found, state, _ = term.apply(owned, STUDENT, TEACHER, batch, KEY, jnp.int32(0))
    assert jax.tree.structure(state) == jax.tree.structure(owned.state)
    return found


def of(side, names):
    return [f"{side}.{name}" for name in names]


@pytest.mark.parametrize(
    ("loss", "paths", "hyper", "direct"),
    [
        (losses.dkd, ("student.logits", "teacher.logits", "batch.label"), {"beta": 2.0}, (S, T, Y)),
        (losses.nkd, ("student.logits", "teacher.logits", "batch.label"), {}, (S, T, Y)),
        (losses.wsld, ("student.logits", "teacher.logits", "batch.label"), {"temperature": 2.0}, (S, T, Y)),
        (losses.dist, ("student.logits", "teacher.logits"), {"gamma": 2.0}, (S, T)),
        (losses.tfkd_reg, ("student.logits", "batch.label"), {}, (S, Y)),
        (
            losses.attention_transfer,
            (of("student", LAYERS), of("teacher", LAYERS)),
            {},
            ([STUDENT.features[n] for n in LAYERS], [TEACHER.features[n] for n in LAYERS]),
        ),
        (
            losses.fsp,
            (of("student", LAYERS), of("teacher", LAYERS)),
            {},
            ([STUDENT.features[n] for n in LAYERS], [TEACHER.features[n] for n in LAYERS]),
        ),
        (
            losses.rkd,
            ("student.pooled", "teacher.pooled"),
            {"angle_weight": 2.0},
            (STUDENT.features["pooled"], TEACHER.features["pooled"]),
        ),
        (
            losses.sp,
            ("student.stage2", "teacher.stage2"),
            {},
            (STUDENT.features["stage2"], TEACHER.features["stage2"]),
        ),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_term_gives_the_mean_of_its_loss(loss, paths, hyper, direct):
    term = objectives.from_outputs(loss, *paths, **hyper)
    found, expected = jax.jit(lambda: (value(term), jnp.mean(loss(*direct, **hyper))))()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_numbers_are_held_in_the_state_and_change_the_value():
    term = objectives.from_outputs(losses.dkd, "student.logits", "teacher.logits", "batch.label", beta=8.0)
    owned = term.init(KEY, STUDENT, TEACHER, BATCH)
    assert set(owned.state) == {"beta"}
    lighter = Variables({}, {"beta": jnp.float32(1.0)})
    run = jax.jit(lambda owned: (term.apply(owned, STUDENT, TEACHER, BATCH, KEY, 0)[0], losses.dkd(S, T, Y, beta=1.0)))
    both = [run(variables)[0] for variables in (owned, lighter)]
    np.testing.assert_allclose(both[1], np.mean(run(lighter)[1]), rtol=1e-6)
    assert abs(both[0] - both[1]) > 1e-3


def test_only_chosen_examples_count():
    term = objectives.from_outputs(losses.nkd, "student.logits", "teacher.logits", "batch.label", where="labelled")
    found, expected = jax.jit(lambda: (value(term), jnp.mean(losses.nkd(S[:2], T[:2], Y[:2]))))()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("path", ["logits", "pupil.logits", "student"])
def test_what_is_no_path_is_refused_at_once(path):
    with pytest.raises(ValueError, match=rf"'{path}' is no path: write student\.<feature>"):
        objectives.from_outputs(losses.kd, path, "teacher.logits")


def test_a_feature_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"the teacher has no feature 'stage7'.*pooled \(6, 8\)"):
        value(objectives.from_outputs(losses.sp, "student.stage1", "teacher.stage7"))
