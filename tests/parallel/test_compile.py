"""The same step on one device and on eight, what it compiles to, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import TERM, Setup, assert_trees_close, copied, make_batch
from jax.sharding import PartitionSpec

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.parallel import mesh as meshes
from jaxkd.types import TrainState, Variables


def run(setup, mesh, steps=3, step=None):
    state = parallel.put_replicated(copied(setup.state), mesh)
    teacher = parallel.put_replicated(setup.teacher_variables, mesh)
    compiled = parallel.compile_jit(step or setup.step, mesh)
    for number in range(steps):
        state, metrics = compiled(state, teacher, parallel.put_batch(make_batch(seed=number), mesh))
    return state, metrics


def couple(student, teacher):
    """A loss that couples the batch: the Gram matrices of the logits."""
    return jnp.mean(jnp.square(student @ student.T - teacher @ teacher.T))


def remember():
    """A bank, a queue, and a projection with a batch norm."""
    pooled = {"student": "pooled", "teacher": "pooled"}
    return objectives.weighted(
        crd=(0.02, objectives.crd(**pooled, examples=16, width=5, negatives=8)),
        queue=objectives.info_nce_queue(**pooled, size=32, width=5),
        ickd=objectives.from_features(
            losses.ickd, student="stage1", teacher="stage1", project=objectives.connector(), normalize=True
        ),
    )


@pytest.mark.parametrize(
    "term",
    [TERM, objectives.from_logits(couple), remember()],
    ids=["labels, kd and hint", "couples the batch", "banks and batch norm"],
)
def test_eight_devices_equal_one(term):
    setup = Setup(term=term, prepare=lambda batch: {**batch, "id": batch["id"] % 16})  # rows of a bank of 16
    one = parallel.make_mesh(jax.devices()[:1])
    eight = parallel.make_mesh()
    assert eight.size == 8
    state_1, metrics_1 = run(setup, one)
    state_8, metrics_8 = run(setup, eight)
    assert_trees_close(metrics_8, metrics_1, rtol=1e-5, atol=1e-6)
    assert_trees_close(state_8.params, state_1.params, rtol=0, atol=2e-5)
    assert_trees_close(state_8.state, state_1.state, rtol=1e-4, atol=1e-5)


def test_comparison_of_devices_can_fail():
    """Negative control: with each device on its own shard a loss that couples the batch has another value."""
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((2, 16, 5)).astype(np.float32)
    shards = np.mean([couple(s[i : i + 2], t[i : i + 2]) for i in range(0, 16, 2)])
    assert abs(shards - couple(s, t)) > 0.1 * couple(s, t)


def test_one_trace_over_many_batches_under_a_transfer_guard():
    setup = Setup()
    mesh = parallel.make_mesh()
    traces = 0

    def counted(*arguments):
        nonlocal traces
        traces += 1
        return setup.step(*arguments)

    state = parallel.put_replicated(setup.state, mesh)
    teacher = parallel.put_replicated(setup.teacher_variables, mesh)
    step = parallel.compile_jit(counted, mesh)
    batches = [parallel.put_batch(make_batch(seed=n), mesh) for n in range(6)]
    with jax.transfer_guard("disallow"):
        for batch in batches:
            state, _ = step(state, teacher, batch)
    assert traces == 1


def test_state_is_donated():
    setup = Setup()
    mesh = parallel.make_mesh()
    state = parallel.put_replicated(setup.state, mesh)
    teacher = parallel.put_replicated(setup.teacher_variables, mesh)
    batch = parallel.put_batch(make_batch(), mesh)
    parallel.compile_jit(setup.step, mesh)(state, teacher, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((teacher, batch)))


@pytest.mark.parametrize("form", ["jit", "pmap"])
def test_the_students_average_may_be_its_teacher_and_arrays_may_be_shared(form):
    small = models.mlp(5, hidden=())
    parts, batch = (small, small, objectives.from_logits(losses.kd), optax.sgd(0.1)), make_batch()
    known = small.init(jax.random.key(1), batch)
    plan = parallel.with_jit() if form == "jit" else parallel.with_pmap()
    start = train.init_state(*parts, key=jax.random.key(0), batch=batch, teacher_variables=known, ema=True)
    step = train.make_train_step(*parts, ema_decay=0.5, axis_name=plan.axis_name)
    found = []
    for donate in (True, False):
        run, state = plan.compile(step, donate_state=donate), plan.put(copied(start))
        for _ in range(2):
            state, metrics = run(state, state.ema, plan.place(batch))
        found.append(float(metrics["loss"]))
    assert found[0] == found[1]
    # Born again by hand: the same arrays are the student's, its average's, and the teacher's.
    reborn = start.replace(params={**start.params, "student": known.params}, ema=known)
    reborn, teacher = plan.put((reborn, known))
    after, _ = plan.compile(step)(reborn, teacher, plan.place(batch))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((teacher, known)))
    with pytest.raises(ValueError, match=r"given away to an earlier step.*donate_state=False"):
        plan.compile(step)(reborn, teacher, plan.place(batch))
    assert int(after.step) == 1


def test_rows_that_were_not_placed_are_checked_too():
    step = parallel.compile_jit(
        lambda state, teacher, batch: batch["x"].sum(), parallel.make_mesh(), donate_state=False
    )
    with pytest.raises(ValueError, match="'x' has 5 rows, which cannot be split evenly over 8 devices"):
        step({}, {}, {"x": np.ones(5, np.float32)})
    with pytest.raises(ValueError, match="'x' has no rows: give at least 8"):
        parallel.put_batch({"x": np.ones((0, 2), np.float32)}, parallel.make_mesh())
    mapped = parallel.compile_pmap(lambda state, teacher, batch: batch["x"].sum(), donate_state=False)
    with pytest.raises(ValueError, match=r"'x' has shape \(16,\), but a step of `pmap` .* parallel.put_shards"):
        mapped({}, {}, {"x": np.ones(16, np.float32)})


def test_teacher_is_an_argument_of_the_program_not_a_constant():
    """A teacher of 4 MB leaves no trace in the program's text; closed over, it would."""
    teacher = models.mlp(5, hidden=(1024, 1000))
    batch = make_batch()
    variables = teacher.init(jax.random.key(0), batch)
    assert sum(x.nbytes for x in jax.tree.leaves(variables)) > 4e6
    student, term, optimizer = models.mlp(5, hidden=(4,)), objectives.from_logits(losses.kd), optax.sgd(0.1)
    state = train.init_state(
        student, teacher, term, optimizer, key=jax.random.key(0), batch=batch, teacher_variables=variables
    )
    step = train.make_train_step(student, teacher, term, optimizer)
    text = jax.jit(step).lower(state, variables, batch).as_text()
    assert len(text) < 1e6
    closed_over = jax.jit(lambda s, b: step(s, variables, b)).lower(state, batch).as_text()
    assert len(closed_over) > 4e6


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("put", [parallel.put_batch, parallel.put_shards])
def test_a_batch_is_placed_as_it_is_in_the_dtypes_of_devices_and_over_all_of_them(put, devices):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    rows = {"image": np.arange(48, dtype=np.uint8).reshape(16, 3), "id": np.arange(16), "mask": np.arange(16) % 3 > 0}
    with jax.transfer_guard("disallow"):  # placing is a transfer that was asked for
        placed = put(rows, mesh)
    assert {name: values.dtype for name, values in placed.items()} == {"image": "uint8", "id": "int32", "mask": "bool"}
    for name, values in placed.items():
        assert len(values.sharding.device_set) == devices
        np.testing.assert_array_equal(values.addressable_shards[-1].data.ravel()[-1], rows[name].ravel()[-1])
        np.testing.assert_array_equal(np.asarray(values).reshape(rows[name].shape), rows[name])


def test_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(
        ValueError, match=r"'image' has 12 rows, which cannot be split evenly over 8 devices.*multiple of 8"
    ):
        parallel.put_batch(make_batch(12), parallel.make_mesh())


def test_text_cannot_go_onto_a_device():
    with pytest.raises(ValueError, match=r"'text' holds text.*transform"):
        parallel.put_batch({"text": np.array(["a"] * 8)}, parallel.make_mesh())


def test_params_are_split_along_their_largest_axis_and_by_rules():
    mesh = parallel.make_mesh(model=4)
    sizes = {"wide": (128, 256), "tall": (256, 128), "square": (128, 128), "odd": (127, 129), "small": (8, 8)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sizes.items()}

    def specs(**rules):
        return {name: found.spec for name, found in parallel.fsdp(tree, mesh, rules).items()}

    own = {"wide": (None, "model"), "tall": ("model",), "square": (None, "model"), "odd": (), "small": ()}
    own = {name: PartitionSpec(*axes) for name, axes in own.items()}
    assert specs() == own
    assert specs(tall=PartitionSpec(), l=PartitionSpec("model")) == own | dict.fromkeys(["tall"], PartitionSpec()) | {
        "small": PartitionSpec("model")
    }
    assert meshes.sharded(mesh).spec == PartitionSpec(("data", "model"))


def test_a_state_stays_split_over_a_step_and_the_teacher_by_rules_of_its_own():
    array = jnp.ones((128, 256))
    state = TrainState(jnp.int32(0), {"student": {"w": array}, "term": {}}, {}, (), jax.random.key(0))
    rows, columns = PartitionSpec("model"), PartitionSpec(None, "model")
    plan = parallel.with_jit(parallel.make_mesh(model=4), student={"w": rows}, teacher={"w": columns})
    state, known = plan.put(copied((state, Variables({"w": array}, {}))))
    assert known.params["w"].sharding.spec == columns
    step = plan.compile(lambda state, known, batch: (state.replace(params=jax.tree.map(jnp.sin, state.params)), 0.0))
    after, _ = step(state, known, plan.place({"x": np.ones(8)}))
    assert after.params["student"]["w"].sharding.spec == rows
