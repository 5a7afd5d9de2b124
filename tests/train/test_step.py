"""The step equals the mathematics written out by hand, and what surrounds it keeps its promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CLASSES, Setup, Small, assert_trees_close, assert_trees_equal, copied, make_batch, make_term

from jaxkd import losses, metrics, models, objectives, train
from jaxkd.keys import fold_name
from jaxkd.types import Model, Outputs, Term, Variables


def handwritten_step(setup, fold_name):
    """The same mathematics with nothing of the library but the key's names."""
    student, teacher = Small(4), Small(8)

    def step(params, statistics, projection, opt_state, number, batch):
        key = jax.random.fold_in(jax.random.key(0), number)
        teacher_out = teacher.apply(
            {"params": setup.teacher_variables.params, **setup.teacher_variables.state}, batch["image"], train=False
        )
        fade = 1.0 - 0.8 * jnp.minimum(number, 20) / 20

        def objective(params, projection):
            out, new = student.apply(
                {"params": params, "batch_stats": statistics},
                batch["image"],
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": fold_name(key, "student")},
            )
            label = optax.softmax_cross_entropy_with_integer_labels(out.logits, batch["label"]).mean()
            p, log_p = jax.nn.softmax(teacher_out.logits / 3), jax.nn.log_softmax(teacher_out.logits / 3)
            kd = 9 * jnp.sum(p * (log_p - jax.nn.log_softmax(out.logits / 3)), axis=-1).mean()
            projected = out.features["stage1"] @ projection["kernel"] + projection["bias"].reshape(1, 1, 1, -1)
            hint = jnp.mean((projected - teacher_out.features["stage1"]) ** 2)
            return 0.5 * label + fade * kd + 2.0 * hint, new["batch_stats"]

        (loss, statistics), grads = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, projection)
        updates, opt_state = setup.optimizer.update(grads, opt_state, (params, projection))
        params, projection = optax.apply_updates((params, projection), updates)
        return params, statistics, projection, opt_state, loss

    return jax.jit(step)


def test_fifty_steps_equal_a_handwritten_step():
    setup = Setup()
    state, step = setup.state, jax.jit(setup.step)
    params, projection = state.params["student"], state.params["term"]["hint"]["student"]
    statistics = state.state["student"]["batch_stats"]
    opt_state = setup.optimizer.init((params, projection))
    by_hand = handwritten_step(setup, fold_name)
    for number in range(50):
        batch = make_batch(seed=number)
        state, found = step(state, setup.teacher_variables, batch)
        params, statistics, projection, opt_state, loss = by_hand(
            params, statistics, projection, opt_state, number, batch
        )
        np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    assert_trees_close(state.params["student"], params, rtol=0, atol=2e-5)
    assert_trees_close(state.params["term"]["hint"]["student"], projection, rtol=0, atol=2e-5)
    assert_trees_close(state.state["student"]["batch_stats"], statistics, rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, setup.state.params["student"])
    assert min(jax.tree.leaves(moved)) > 0.01


def test_loss_is_the_weighted_sum_and_each_part_is_reported():
    setup = Setup()
    _, found = jax.jit(setup.step)(setup.state, setup.teacher_variables, make_batch())
    assert set(found) == {"loss", *(n + s for n in ("label", "kd", "hint") for s in ("", "_weighted"))}
    np.testing.assert_allclose(found["loss"], 0.5 * found["label"] + 1.0 * found["kd"] + 2.0 * found["hint"], rtol=1e-6)


def test_teacher_gets_no_gradient_through_the_step():
    setup = Setup()

    @jax.jit
    def value(teacher_variables):
        return setup.step(setup.state, teacher_variables, make_batch())[1]["loss"]

    params = setup.teacher_variables.params
    leaked = jax.grad(lambda p: value(setup.teacher_variables._replace(params=p)))(params)
    for leaf in jax.tree.leaves(leaked):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
    moved = jax.tree.map(lambda x: x + 0.1, params)
    assert abs(value(setup.teacher_variables._replace(params=moved)) - value(setup.teacher_variables)) > 1e-4


def test_changed_temperature_and_weight_do_not_retrace():
    setup = Setup()
    traces = 0

    def counted(*arguments):
        nonlocal traces
        traces += 1
        return setup.step(*arguments)

    step = jax.jit(counted)
    _, warm = step(setup.state, setup.teacher_variables, make_batch())
    term_state = setup.state.state["term"]
    hotter = {**term_state, "kd": {"temperature": jnp.float32(9.0)}}
    _, hot = step(
        setup.state.replace(state={**setup.state.state, "term": hotter}), setup.teacher_variables, make_batch()
    )
    heavier = {**term_state, "weights": {**term_state["weights"], "hint": jnp.float32(5.0)}}
    _, heavy = step(
        setup.state.replace(state={**setup.state.state, "term": heavier}), setup.teacher_variables, make_batch()
    )
    assert traces == 1
    assert abs(hot["kd"] - warm["kd"]) > 1e-3
    np.testing.assert_allclose(heavy["hint_weighted"], 2.5 * warm["hint_weighted"], rtol=1e-5)


def test_ema_follows_params_and_running_statistics():
    setup = Setup(ema_decay=0.9)
    state = setup.state
    expected = Variables(state.params["student"], state.state["student"])
    step = jax.jit(setup.step)
    for number in range(3):
        state, _ = step(state, setup.teacher_variables, make_batch(seed=number))
        now = Variables(state.params["student"], state.state["student"])
        expected = jax.tree.map(lambda e, x: 0.9 * e + 0.1 * x, expected, now)
    assert_trees_close(state.ema, expected, rtol=1e-5, atol=1e-6)


def test_metrics_of_the_training_batch_are_reported():
    setup = Setup(metrics={"accuracy": metrics.accuracy})
    _, found = jax.jit(setup.step)(setup.state, setup.teacher_variables, make_batch())
    assert 0 <= found["accuracy"] <= 1


def test_student_can_start_from_given_variables():
    setup = Setup()
    start = setup.student.init(jax.random.key(5), make_batch())
    state = train.init_state(
        setup.student,
        setup.teacher,
        setup.term,
        setup.optimizer,
        key=jax.random.key(0),
        batch=make_batch(),
        teacher_variables=setup.teacher_variables,
        student_variables=start,
    )
    assert_trees_close(state.params["student"], start.params, rtol=0)


def fixed(classes, features=None):
    """A model without variables that returns constants."""

    def apply(variables, batch, key, train):
        size = batch["image"].shape[0]
        return Outputs(jnp.zeros((size, classes)), {n: jnp.zeros((size, *s)) for n, s in (features or {}).items()}), {}

    return Model(lambda key, batch: Variables({}, {}), apply)


@pytest.mark.parametrize(
    ("term", "teacher", "message"),
    [
        (objectives.from_logits(losses.kd), fixed(7), rf"different numbers of classes \({CLASSES} and 7"),
        (
            objectives.from_features(losses.hint, student="stage9", teacher="pooled"),
            fixed(CLASSES, {"pooled": (4,)}),
            r"the student has no feature 'stage9'.*pooled \(16, 4\), stage1 \(16, 4, 4, 4\)",
        ),
        (
            objectives.from_features(losses.hint, student="pooled", teacher="deep"),
            fixed(CLASSES, {"wide": (4,)}),
            r"the teacher has no feature 'deep'.*wide \(16, 4\)",
        ),
        (
            objectives.from_features(losses.hint, student="pooled", teacher="wide"),
            fixed(CLASSES, {"wide": (9,)}),
            r"\(16, 4\).*\(16, 9\).*project",
        ),
        (
            objectives.from_features(losses.hint, student="stage1", teacher="map", project=objectives.linear()),
            fixed(CLASSES, {"map": (8, 8, 3)}),
            r"a linear projection changes the last axis only.*\(16, 4, 4, 4\).*\(16, 8, 8, 3\)",
        ),
        (objectives.from_labels(losses.cross_entropy, label="target"), fixed(CLASSES), r"no field 'target'.*image"),
    ],
)
def test_parts_that_do_not_fit_fail_in_a_sentence_before_anything_compiles(term, teacher, message):
    student = models.from_linen(Small(4))
    with pytest.raises(ValueError, match=message), jax.log_compiles(False):
        train.init_state(
            student,
            teacher,
            term,
            optax.sgd(0.1),
            key=jax.random.key(0),
            batch=make_batch(),
            teacher_variables=Variables({}, {}),
        )


def test_several_keys_make_stacked_students():
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = Setup(keys=keys).state
    for i in range(3):
        one = train.init_state(
            *(s := Setup(), s.student)[1:],
            s.teacher,
            s.term,
            s.optimizer,
            key=keys[i],
            batch=make_batch(),
            teacher_variables=s.teacher_variables,
        )
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], stacked.params), one.params, rtol=1e-5, atol=1e-6)


def test_term_that_forgets_the_mean_is_refused():
    term = make_term()
    broken = term._replace(
        apply=lambda v, s, t, b, k, n: (losses.kd(s.logits, t.logits), v.state, {}),
    )
    with pytest.raises(ValueError, match=r"must return a scalar but this one returned shape \(16,\)"):
        Setup(term=broken).state  # noqa: B018 (which starts it)


def poisoned(seed):
    batch = make_batch(seed=seed)
    return {**batch, "image": np.where(np.arange(16).reshape(-1, 1, 1, 1) == 3, np.nan, batch["image"])}


def test_a_step_that_is_not_finite_is_left_out_and_counted():
    setup = Setup(skip_nonfinite=True, ema_decay=0.9)
    step = jax.jit(setup.step)
    known = setup.teacher_variables
    good, metrics = step(setup.state, known, make_batch(seed=0))
    assert int(metrics["skipped"]) == 0
    kept, metrics = step(good, known, poisoned(1))
    assert not np.isfinite(float(metrics["loss"]))
    assert int(metrics["skipped"]) == int(kept.skipped) == 1
    assert int(kept.step) == 2
    assert_trees_equal(kept.replace(step=good.step, skipped=good.skipped), good)
    # Where nothing is wrong, the step is what it is without the guard.
    plain = Setup(ema_decay=0.9)
    assert_trees_equal(jax.jit(plain.step)(plain.state, known, make_batch(seed=0))[0], good)
    after, metrics = step(kept, known, make_batch(seed=2))
    assert int(metrics["skipped"]) == 1
    assert np.isfinite(float(metrics["loss"]))
    assert (
        float(jnp.abs(after.params["student"]["head"]["kernel"] - kept.params["student"]["head"]["kernel"]).max()) > 0
    )


def test_of_stacked_students_only_the_broken_one_skips():
    setup = Setup(keys=jax.random.split(jax.random.key(0), 2), skip_nonfinite=True)
    broken = copied(setup.state.params)
    head = broken["student"]["head"]
    broken["student"]["head"] = {**head, "bias": head["bias"].at[1].set(jnp.nan)}
    state, _ = jax.jit(jax.vmap(setup.step, (0, None, None)))(
        setup.state.replace(params=broken), setup.teacher_variables, make_batch()
    )
    np.testing.assert_array_equal(state.skipped, [0, 1])
    assert np.all(np.isfinite(state.params["student"]["head"]["kernel"][0]))


@pytest.mark.parametrize(
    ("loss", "finite"),
    [
        (lambda logits: jnp.sqrt(0 * logits[:, 0]), True),  # 0, with a slope of infinity times 0
        (lambda logits: logits[:, 0] + jax.lax.stop_gradient(jnp.nan), False),
    ],
    ids=["gradient", "loss"],
)
def test_loss_and_gradient_are_both_looked_at_before_an_update(loss, finite):
    term = objectives.from_outputs(loss, "student.logits")
    setup = Setup(student=models.mlp(CLASSES, hidden=(3,)), term=term, skip_nonfinite=True)
    state, found = jax.jit(setup.step)(setup.state, setup.teacher_variables, make_batch())
    assert bool(np.isfinite(found["loss"])) == finite
    assert int(found["skipped"]) == 1
    assert_trees_equal(state.replace(step=setup.state.step, skipped=setup.state.skipped), setup.state)


def test_student_and_term_draw_apart():
    """At the start and in the step, each from a stream of its own."""

    def drawn(key, *_):
        return Variables({"w": jax.random.uniform(key)}, {})

    def apply(variables, batch, key, train):
        return Outputs(jnp.zeros((16, CLASSES)), {"drawn": jnp.full(16, jax.random.uniform(key))}), {}

    def value(variables, student, teacher, batch, key, step):
        return variables.params["w"], {}, {"own": jax.random.uniform(key), "student": student.features["drawn"][0]}

    parts = (Model(drawn, apply), models.no_teacher(), Term(drawn, value), optax.sgd(0.1))
    nothing = Variables({}, {})
    state = train.init_state(*parts, key=jax.random.key(0), batch=make_batch(), teacher_variables=nothing)
    assert state.params["student"]["w"] != state.params["term"]["w"]
    _, found = train.make_train_step(*parts)(state, nothing, make_batch())
    assert found["own"] != found["student"]


def test_a_state_may_be_donated_and_what_it_started_from_stays():
    """No buffer stands in it twice, and none is the caller's."""
    parts = (models.mlp(CLASSES, hidden=(3,)), models.no_teacher(), objectives.from_labels(losses.cross_entropy))
    start = parts[0].init(jax.random.key(5), make_batch())
    options = {"key": jax.random.key(0), "batch": make_batch(), "teacher_variables": Variables({}, {}), "ema": True}
    state = train.init_state(*parts, optax.sgd(0.1), student_variables=start, **options)
    after = jax.jit(lambda state: state.replace(step=state.step + 1), donate_argnums=0)(state)
    assert_trees_equal(after.ema.params, after.params["student"])
    assert_trees_equal(after.params["student"], start.params)


def test_a_name_gives_the_same_key_in_every_process():
    found = jax.random.key_data(fold_name(jax.random.key(0), "student"))
    np.testing.assert_array_equal(found, [1357186832, 3421867886])
