"""Terms of recommenders: experts against NumPy, drawn rankings, and all of them in one jitted step of a network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import augment, losses, models, objectives, train
from jaxkd.objectives.networks import experts
from jaxkd.objectives.ranking import draw_places
from jaxkd.types import Outputs

B, DS, DT, M, ITEMS = 6, 3, 5, 4, 12
RNG = np.random.default_rng(0)
S, T = (RNG.standard_normal((B, d)).astype("f") for d in (DS, DT))


def relu(x):
    return np.maximum(x, 0)


def test_experts_are_a_mixture_chosen_by_the_teachers_vector():
    network = experts(M)
    params = network.init(jax.random.key(0), (B, DS), (B, DT))
    first, second = ({n: np.asarray(x, np.float64) for n, x in layer.items()} for layer in params["experts"])
    assert first["kernel"].shape == (M, DS, (DS + DT) // 2)
    selector = np.asarray(params["selector"]["kernel"], np.float64)
    p = np.exp(T @ selector)
    p = (p / p.sum(axis=1, keepdims=True)) ** (1 / 0.5)
    p = p / p.sum(axis=1, keepdims=True)
    each = [relu(S @ first["kernel"][m]) @ second["kernel"][m] for m in range(M)]
    expected = sum(p[:, m : m + 1] * each[m] for m in range(M))
    np.testing.assert_allclose(jax.jit(network.apply)(params, S, T, 0.5, None), expected, rtol=1e-4, atol=1e-5)
    sharp = jax.jit(network.apply)(params, S, T, 1e-4, jax.random.key(1))  # one expert has a row alone
    distance = np.abs(np.stack(each) - np.asarray(sharp)).max(axis=-1).min(axis=0)
    np.testing.assert_allclose(distance, 0, atol=1e-4)
    with pytest.raises(ValueError, match="there are 0 experts"):
        experts(0)


def test_places_are_drawn_in_order_without_repetition_and_first_ones_more_often():
    ranking = jnp.asarray([[5, 3, 8, 1, 0, 7], [2, 4, -1, -1, -1, -1]])
    draw = jax.jit(jax.vmap(functools.partial(draw_places, ranking=ranking, keep=3, decay=1.0)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 200)))
    order = {5: 0, 3: 1, 8: 2, 1: 3, 0: 4, 7: 5}
    places = np.vectorize(order.get)(found[:, 0])
    assert np.all(np.diff(places, axis=1) > 0)
    counts = np.bincount(places.ravel(), minlength=6)
    assert counts[0] > counts[2] > counts[5]
    assert np.all(found[:, 1] == [2, 4, -1])


def make_batch():
    seen = (RNG.random((B, ITEMS)) < 0.4).astype(np.uint8)
    seen[:, 0], seen[:, 1:6] = 1, 0
    ranking = np.tile(np.array([3, 1, 5, 2, 4], np.int32), (B, 1))
    return {"user": np.arange(B, dtype=np.int32), "seen": seen, "ranking": ranking, "id": np.arange(B, dtype=np.int32)}


TERMS = {
    "rd": objectives.from_outputs(losses.ranking_distillation, "student.logits", "batch.ranking", decay=2.0, mu=0.1),
    "rrd": objectives.rrd(keep=3),
    "user": objectives.distillation_experts(count=2, tau=0.5),
    "item": objectives.distillation_experts(student="item", teacher="item", count=2),
    "bpr": objectives.from_outputs(losses.bpr, "student.logits", "batch.item", "batch.negatives"),
}


def test_all_terms_train_a_network_in_one_step():
    batch = augment.draw_items(seed=0, negatives=2)({**make_batch(), "view": np.zeros(B, np.int32)})
    student, teacher = models.matrix_factorisation(B, ITEMS, width=DS), models.two_towers(ITEMS, width=DT)
    owned = models.init(teacher, jax.random.key(1), batch)
    term = objectives.weighted(**{name: (1.0, one) for name, one in TERMS.items()})
    parts = student, teacher, term, optax.adam(0.05)
    state = train.init_state(*parts, key=jax.random.key(0), batch=batch, teacher_variables=owned)
    step, seen = jax.jit(train.make_train_step(*parts)), []
    for _ in range(12):
        state, found = step(state, owned, batch)
        seen.append(found)
    names = [name for name in seen[0] if name != "loss" and name.rpartition("/")[2] in TERMS]
    assert len(names) == len(TERMS)
    for name in names:  # pairs want the items seen on top, rankings others
        assert np.isfinite(seen[-1][name])
        assert name.endswith("bpr") or float(seen[-1][name]) < float(seen[0][name]), name


def test_mistakes_are_refused():
    student, teacher = Outputs(jnp.zeros((B, ITEMS)), {"user": S}), Outputs(None, {"user": T[:, :, None]})
    with pytest.raises(ValueError, match=r"'user' and 'user' have shapes \(6, 3\) and \(6, 5, 1\)"):
        objectives.distillation_experts().init(jax.random.key(0), student, teacher, {})
    with pytest.raises(ValueError, match=r"9 items of rankings of 5 are to be drawn: give 1\.\.5"):
        objectives.rrd(keep=9).init(jax.random.key(0), student, teacher, make_batch())
