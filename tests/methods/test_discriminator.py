"""Adversarial distillation: the value of the game, who is moved by what, stacks, devices, and a run that is killed."""

import functools
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.methods import discriminator
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.runs.loop import fit
from jaxkd.train import students
from jaxkd.types import Outputs, Variables

KEY, K, B = jax.random.key(0), 3, 16
RNG = np.random.default_rng(0)
BATCH = {"image": RNG.standard_normal((B, 4), np.float32), "label": (np.arange(B) % K).astype(np.int32)}
S, T = (RNG.standard_normal((B, K), np.float32) for _ in range(2))
OWN = r"^discriminator/"
STUDENT, TEACHER = models.mlp(K, hidden=(4,)), models.mlp(K, hidden=(6,))
GAME = discriminator.adversarial(hidden=(8,), weight=optax.linear_schedule(0.0, 1.0, 4))
TERM = objectives.weighted(label=objectives.from_labels(losses.cross_entropy), adversary=GAME)
OPTIMIZER = discriminator.two_optimizers(optax.sgd(0.1, momentum=0.9), optax.adam(0.01))
PARTS = (STUDENT, TEACHER, TERM, OPTIMIZER)


@functools.cache
def known():
    shapes = jax.eval_shape(TEACHER.init, KEY, BATCH)
    return jax.tree.map(lambda x: 2 * np.random.default_rng(1).standard_normal(x.shape, np.float32), shapes)


def begin():
    return train.init_state(*PARTS, key=KEY, batch=BATCH, teacher_variables=known())


@functools.cache
def compiled():
    return jax.jit(train.make_train_step(*PARTS))


def game(term, s=S, t=T, batch=BATCH, seed=0):
    """Variables of a term, moved off their start, and (params, s) -> value and metrics."""
    shapes = Outputs(s, {"map": s}), Outputs(t, {"map": t})
    start = jax.eval_shape(lambda: term.init(KEY, *shapes, batch))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), start.params)

    def value(params, s):
        owned = Variables(params, {"weight": jnp.float32(0.7)})
        total, _, found = term.apply(owned, Outputs(s, {"map": s}), Outputs(t, {"map": t}), batch, KEY, jnp.int32(2))
        return total, found

    return params, value


def test_neither_player_is_moved_by_the_loss_of_the_other():
    term = discriminator.adversarial(hidden=(8,), weight=0.7)
    params, value = game(term)
    grads, found = jax.jit(jax.grad(value, (0, 1), has_aux=True))(params, S)

    def score(params, x):
        return term_network(params, x - x.mean(-1, keepdims=True))

    def term_network(params, x):
        for layer in params["layers"]:
            x = jax.nn.leaky_relu(x @ layer["kernel"] + layer["bias"][None], 0.2)
        return (x @ params["score"]["kernel"] + params["score"]["bias"][None])[:, 0]

    def fooling(s):
        return -0.7 * jnp.mean(jnp.log(jax.nn.sigmoid(score(params["discriminator"], s))))

    def telling(own):
        D = jax.nn.sigmoid(jnp.stack([score(own, S), score(own, T)]))
        return -jnp.mean(jnp.log(1 - D[0]) + jnp.log(D[1]))

    (to_own,), to_s = (jax.tree.leaves(grads[0], is_leaf=lambda x: "layers" in x), grads[1])
    expected = jax.jit(lambda: (jax.value_and_grad(telling)(params["discriminator"]), jax.value_and_grad(fooling)(S)))()
    np.testing.assert_allclose(found["telling"], expected[0][0], rtol=1e-5)
    np.testing.assert_allclose(0.7 * found["fooling"], expected[1][0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), to_own, expected[0][1])
    np.testing.assert_allclose(to_s, expected[1][1], rtol=1e-4, atol=1e-7)


def test_the_value_of_the_game_is_log_4_and_the_best_answer_to_equal_distributions_is_one_half():
    term = discriminator.adversarial(hidden=(8,))
    params, value = game(term, s=T[::-1].copy())
    undecided = jax.tree.map(jnp.zeros_like, params)
    run, optimizer = jax.jit(jax.value_and_grad(value, has_aux=True)), optax.adam(0.05)
    (_, found), grads = run(undecided, T[::-1])
    np.testing.assert_allclose(found["telling"], 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(found["fooling"], np.log(2), rtol=1e-6)
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(grads)) < 1e-6  # D = 1/2 is the best answer
    update, state, values = jax.jit(optimizer.update), optimizer.init(params), []
    for _ in range(60):
        (_, found), grads = run(params, T[::-1])
        updates, state = update(grads, state)
        params = jax.tree.map(jnp.add, params, updates)
        values.append(float(found["telling"]))
    assert values[0] > 1.5
    assert min(values) > 2 * np.log(2) - 1e-5
    assert values[-1] == pytest.approx(2 * np.log(2), abs=5e-3)
    (_, found), _ = run(jax.tree.map(lambda x: 1e4 * x, params), S)
    assert np.isfinite(found["telling"])


def test_features_of_other_widths_given_classes_with_a_penalty_under_masks():
    s, t = (RNG.standard_normal((B, c), np.float32) for c in (2, 3))
    options = {"student": "map", "teacher": "map", "hidden": (4,), "num_classes": K, "project": objectives.linear()}
    one, two = (discriminator.adversarial(**options, penalty=penalty) for penalty in (0.0, 2.0))
    half, cut = {**BATCH, "mask": np.arange(B) < B // 2}, {name: x[: B // 2] for name, x in BATCH.items()}
    params, value = game(one, s, t)
    still = {**params, "discriminator": jax.tree.map(np.zeros_like, params["discriminator"])}

    def all_ways(params, still, poisoned):
        total, grads = jax.value_and_grad(lambda params: value(params, s)[0])(params)
        steep = [game(two, s, t)[1](each, s)[0] for each in (params, still)]
        masked = game(one, s, t, half)[1](params, poisoned)[1]["telling"]
        return (
            total,
            grads,
            steep,
            masked,
            game(one, s[: B // 2], t[: B // 2], cut)[1](params, s[: B // 2])[1]["telling"],
        )

    poisoned = np.where(half["mask"][:, None], s, np.nan)
    total, grads, steep, masked, alone = jax.jit(all_ways)(params, still, poisoned)
    assert np.any(grads["project"]["kernel"])
    assert np.any(grads["discriminator"]["classes"])
    assert steep[0] > total
    np.testing.assert_allclose(steep[1], 2.7 * np.log(2), rtol=1e-5)
    np.testing.assert_allclose(masked, alone, rtol=1e-5)
    maps = RNG.standard_normal((B, 4, 4, 2), np.float32)
    of_maps = discriminator.adversarial(student="map", teacher="map", hidden=(2, 3), penalty=1.0)
    params, value = game(of_maps, maps, maps)
    assert [x["kernel"].shape for x in params["discriminator"]["layers"]] == [(3, 3, 2, 2), (3, 3, 2, 3)]
    assert jax.eval_shape(jax.grad(lambda s: value(params, s)[0]), maps).shape == maps.shape


@functools.cache
def three():
    """State and metrics after three steps on one device."""
    state = begin()
    for _ in range(3):
        state, found = compiled()(state, known(), BATCH)
    return state, found


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5), a, b)


def test_stacks_of_seeds_and_devices_train_as_one_does():
    wanted, found = three()
    assert {"adversary/telling", "adversary/fooling", "adversary/told"} <= set(found)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), begin())
    stack = jax.jit(students.vmap_students(train.make_train_step(*PARTS)))
    mesh = parallel.make_mesh()
    spread = parallel.compile_pmap(train.make_train_step(*PARTS, axis_name=parallel.DATA))
    many, rows, teacher = (
        parallel.put_replicated(begin(), mesh),
        parallel.put_shards(BATCH, mesh),
        parallel.put_replicated(known(), mesh),
    )
    for _ in range(3):
        stacked, _ = stack(stacked, known(), BATCH)
        many, _ = spread(many, teacher, rows)
    close(students.pick_student(stacked.params, 1), wanted.params)
    close(jax.device_get(many.params), jax.device_get(wanted.params))


def test_each_player_has_its_optimizer_and_what_does_not_fit_gets_a_sentence():
    frozen = discriminator.two_optimizers(optax.sgd(0.1), optax.set_to_zero())
    params = {"student": {"a": 1.0}, "term": {"x": {"discriminator": {"b": 1.0}, "project": {"c": 1.0}}}}
    updates, _ = frozen.update(params, frozen.init(params), params)
    moved = {jax.tree_util.keystr(path): float(x) for path, x in jax.tree.leaves_with_path(updates)}
    assert [x != 0 for x in moved.values()] == [True, False, True], moved
    with pytest.raises(ValueError, match="decides over no parameter"):
        frozen.init({"student": {"a": 1.0}, "term": {}})
    with pytest.raises(ValueError, match="give a discriminator a `project`"):
        game(discriminator.adversarial(student="map", teacher="map"), S[:, :2], T)
    with pytest.raises(ValueError, match=r"the penalty of a discriminator is -1"):
        discriminator.adversarial(penalty=-1)
    with pytest.raises(ValueError, match="num_classes is 0: give the number of classes, or None"):
        discriminator.adversarial(num_classes=0)
    with pytest.raises(ValueError, match=r"layers of a discriminator are \(\)"):
        discriminator.adversarial(hidden=())


STEPS, EVERY, KILLED = 9, 2, 7


def played(folder, killed=None):
    """State after a training with checkpoints, from the start or where it stopped; it may be killed at a step."""

    def batches(start, stop):
        for number in range(start, stop):
            if number == killed:
                os.kill(os.getpid(), signal.SIGKILL)
            order = np.random.default_rng(number).permutation(B)
            yield jax.device_put({name: x[order] for name, x in BATCH.items()})

    with Checkpoints(pathlib.Path(folder)) as checkpoints:
        options = {"checkpoints": checkpoints, "checkpoint_every": EVERY}
        return fit(compiled(), begin(), jax.device_put(known()), batches, steps=STEPS, **options)


def test_both_players_of_a_killed_run_end_with_the_same_bits(forks, tmp_path):
    here = pathlib.Path(__file__)
    process = forks.start(here, tmp_path / "killed", devices=jax.device_count(), path=(here.parents[1],))
    assert process.wait(timeout=300) == -signal.SIGKILL
    saved = sorted(int(path.name) for path in (tmp_path / "killed").iterdir() if path.name.isdigit())
    assert saved
    assert saved[-1] < STEPS
    bits = [
        [(x.dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves((state.params, state.state, state.opt_state))]
        for state in (played(tmp_path / "killed"), played(tmp_path / "whole"))
    ]
    assert bits[0] == bits[1]


if __name__ == "__main__":
    played(sys.argv[1], KILLED)
