"""Mutual learning: the formula by hand, members that are moved by their own objective alone, a cohort of one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CLASSES, assert_trees_close, make_batch

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.methods import mutual_learning
from jaxkd.types import Variables

NET = models.mlp(CLASSES, hidden=(4,))
OTHER = models.mlp(CLASSES, hidden=(3, 3))
LABEL, PEER = objectives.from_labels(losses.cross_entropy), objectives.from_logits(losses.kd, temperature=2.0)
BATCH = {name: x[:8] for name, x in make_batch().items()}
PEER_VALUE = lambda s, t: np.mean(losses.kd(s, t, temperature=2.0))  # noqa: E731
KEY, NOBODY = jax.random.key(0), models.no_teacher()


@functools.cache
def single(i, model=NET):
    return jax.device_get(model.init(jax.random.key(i + 1), BATCH))


def cohort(members):
    return models.stacked(NET, members), models.stack(*(single(i) for i in range(members)))


def trained(student, term, start, optimizer, steps=3, **options):
    parts = (student, NOBODY, term, optimizer)
    given = {"batch": BATCH, "teacher_variables": None, "student_variables": start}
    state = train.init_state(*parts, key=KEY, **given)
    step = jax.jit(train.make_train_step(*parts, **options))
    for _ in range(steps):
        state, found = step(state, None, BATCH)
    return Variables(state.params["student"], state.state["student"]), found


def by_hand(params, weight=1.0):
    """The members' objectives, each with its peers as constants that no one differentiates."""
    z = [NET.apply(Variables(own, {}), BATCH, None, True)[0].logits for own in params]
    values = []
    for i, own in enumerate(z):
        log_q, total = jax.nn.log_softmax(own / 2), 0.0
        for j, other in enumerate(z):
            if j != i:
                log_p = jax.lax.stop_gradient(jax.nn.log_softmax(other / 2))
                total += 4 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1).mean() / (len(z) - 1)
        label = optax.softmax_cross_entropy_with_integer_labels(own, BATCH["label"]).mean()
        values.append(label + weight * total)
    return values


def value_of(student, term):
    """Params -> the term's value and metrics."""

    def value(params):
        out, _ = student.apply(Variables(params, {}), BATCH, KEY, True)
        owned = term.init(KEY, out, None, BATCH)
        found, _, metrics = term.apply(owned, out, None, BATCH, KEY, jnp.int32(0))
        return found, metrics

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def test_each_member_has_the_gradient_of_its_own_objective_alone():
    """KL both ways between three members, in which peers are constants; without that, gradients would be others."""
    student, start = cohort(3)
    (value, found), grads = value_of(student, mutual_learning.mutual(LABEL, PEER, 3, weight=0.3))(start.params)

    @jax.jit
    @jax.jacrev
    def jacobian(params):
        return jnp.stack(by_hand([jax.tree.map(lambda x, i=i: x[i], params) for i in range(3)], 0.3))

    own = jax.tree.map(lambda x: jnp.stack([x[i, i] for i in range(3)]), jacobian(start.params))
    assert_trees_close(grads, own, rtol=1e-4, atol=1e-6)
    assert found.keys() == {"label", "peers"}
    np.testing.assert_allclose(value, 3 * found["label"] + 0.3 * 3 * found["peers"], rtol=1e-5)


@pytest.mark.parametrize("i", [0, 1])
def test_no_gradient_of_a_members_objective_reaches_its_peer(i):
    student, start = cohort(2)
    pair = mutual_learning._seen_by(PEER, 2, i, 1 - i)
    _, grads = value_of(student, pair)(start.params)
    own, peer = (mutual_learning.member(Variables(grads, {}), m).params for m in (i, 1 - i))
    assert all(not np.any(x) for x in jax.tree.leaves(peer))
    assert any(np.any(x) for x in jax.tree.leaves(own))


def test_a_cohort_of_one_is_plain_training():
    student, start = cohort(1)
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.05))
    alone, plain = trained(NET, LABEL, single(0), optimizer)
    together, found = trained(student, mutual_learning.mutual(LABEL, PEER, 1), start, optimizer)
    assert_trees_close(mutual_learning.member(together, 0), alone, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found["loss"], plain["loss"], rtol=1e-6)


def test_members_without_weight_are_networks_alone_even_when_clipped():
    student, start = cohort(2)
    clipped = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.05))
    term = mutual_learning.mutual(LABEL, PEER, 2, weight=0.0)
    together, _ = trained(student, term, start, mutual_learning.per_member(clipped))
    for i in range(2):
        alone, _ = trained(NET, LABEL, single(i), clipped)
        assert_trees_close(mutual_learning.member(together, i), alone, rtol=1e-5, atol=1e-6)
    mixed, _ = trained(student, term, start, clipped)
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), mixed, together)
    assert max(jax.tree.leaves(apart)) > 1e-4  # one norm over both members


def test_members_of_different_architectures_learn_from_each_other():
    student = models.ensemble(NET, OTHER)
    start = models.join(single(0), single(1, OTHER))
    term = mutual_learning.mutual(LABEL, PEER, 2)
    variables, found = trained(student, term, start, optax.adam(0.05), steps=9)
    pairs = [(m, mutual_learning.member(variables, i, stacked=False)) for i, m in enumerate((NET, OTHER))]
    z = [m.apply(own, BATCH, None, False)[0].logits for m, own in pairs]
    np.testing.assert_allclose(student.apply(variables, BATCH, None, False)[0].logits, np.mean(z, 0), rtol=1e-5)
    before = student.apply(start, BATCH, None, False)[0].features
    first = sum(PEER_VALUE(before[f"{i}/logits"], before[f"{1 - i}/logits"]) for i in range(2)) / 2
    assert found["peers"] < first


def test_a_cohort_over_devices_trains_as_on_one():
    student, start = cohort(2)
    parts = (student, NOBODY, mutual_learning.mutual(LABEL, PEER, 2), optax.adam(0.05))
    mesh = parallel.make_mesh()
    state = train.init_state(*parts, key=KEY, batch=BATCH, teacher_variables=None, student_variables=start)
    step = parallel.compile_pmap(train.make_train_step(*parts, axis_name=parallel.DATA))
    state, found = step(parallel.put_replicated(state, mesh), None, parallel.put_shards(BATCH, mesh))
    one, wanted = trained(student, parts[2], start, parts[3], steps=1)
    assert_trees_close(state.params["student"], one.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["peers"], wanted["peers"], rtol=1e-4)


def test_what_does_not_fit_fails_in_a_sentence():
    student, start = cohort(2)
    with pytest.raises(ValueError, match="cannot be: give at least one"):
        mutual_learning.mutual(LABEL, PEER, 0)
    parts = (student, NOBODY, mutual_learning.mutual(LABEL, PEER, 3), optax.sgd(0.1))
    with pytest.raises(ValueError, match="2 members but the objective is of a cohort of 3"):
        train.check_parts(*parts[:3], batch=BATCH, teacher_variables=None)
    for variables, options in ((start, {}), (start, {"stacked": False}), (single(0), {})):
        with pytest.raises(ValueError, match="member 2 was asked for"):
            mutual_learning.member(variables, 2, **options)
