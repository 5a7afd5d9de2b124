"""Stages apart and joined, stages replaced by chance, and modules that read the teacher's features."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, models
from jaxkd.methods import blockwise, side_network, theseus
from jaxkd.models.stages import Stages
from jaxkd.types import TEACHER, Variables

KEY, NAMES = jax.random.key(0), ("stage1", "stage2")
RNG = np.random.default_rng(0)
BATCH = {"image": RNG.standard_normal((6, 3), np.float32), "label": np.array([0, 1, 2, 0, 1, 2], np.int32)}


class Net(nn.Module):
    """Two stages, with batch norms if they are asked for."""

    widths: tuple = (4, 4)
    norm: bool = True

    @nn.compact
    def __call__(self, image, train):
        x, features = image, {}
        for i, width in enumerate(self.widths, 1):
            x = nn.Dense(width, name=f"dense{i}")(x)
            x = nn.BatchNorm(not train, name=f"norm{i}")(x) if self.norm else x
            features[f"stage{i}"] = x = nn.tanh(x)
        return nn.Dense(3, name="head")(x), features


TEACHER_NET, WIDE, PLAIN, WIDE_PLAIN = (
    models.from_linen(Net(*given)) for given in ((), ((5, 4),), ((4, 4), False), ((5, 4), False))
)
STUDENT = models.from_linen(Net())


@functools.cache
def made(model, seed=1):
    """Variables of a model that are all positive, as variances have to be."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, KEY, BATCH)
    return jax.tree.map(lambda x: np.abs(rng.standard_normal(x.shape)).astype(x.dtype), shapes)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def applied(model, variables, teacher, batch=BATCH, key=KEY):
    """Outputs and new state of a model in training, compiled."""
    run = lambda v, t, k: model.apply(v, {**batch, TEACHER: t}, k, True)  # noqa: E731
    return jax.jit(run)(variables, teacher, key)


def test_student_whose_stages_are_the_teachers_has_loss_0():
    student, known = blockwise.apart(PLAIN, PLAIN, NAMES), made(PLAIN)
    out, _ = applied(student, known, known)
    teacher, _ = jax.jit(lambda v: PLAIN.apply(v, BATCH, None, False))(known)
    for name, term in blockwise.terms(NAMES).items():
        start = term.init(KEY, out, teacher, BATCH)
        assert term.apply(start, out, teacher, BATCH, KEY, 0)[0] == 0
        np.testing.assert_array_equal(out.features[f"apart/{name}"], teacher.features[name])
    np.testing.assert_array_equal(out.logits, teacher.logits)


def test_each_stage_reads_the_teacher_and_is_moved_by_its_own_term_alone():
    student, known = blockwise.apart(WIDE_PLAIN, PLAIN, NAMES), made(WIDE_PLAIN)
    own = made(student, 2)
    teacher, _ = WIDE_PLAIN.apply(known, BATCH, None, False)

    def parts(params):
        out, _ = student.apply(own._replace(params=params), {**BATCH, TEACHER: known}, KEY, True)
        made = [losses.hint(out.features[f"apart/{name}"], teacher.features[name]) for name in NAMES]
        return jnp.stack([jnp.mean(x) for x in (*made, losses.cross_entropy(out.logits, BATCH["label"]))])

    grads = {jax.tree_util.keystr(path, simple=True, separator="/"): x
             for path, x in jax.tree.leaves_with_path(jax.jit(jax.jacrev(parts))(own.params))}  # fmt: skip
    moved = [{path for path, x in grads.items() if np.any(x[i]) and path.endswith("kernel")} for i in range(3)]
    assert moved == [
        {"dense1/kernel", "adapters/stage1/write/kernel"},
        {"dense2/kernel", "adapters/stage1/read/kernel"},
        {"head/kernel"},
    ]


def test_joined_student_is_its_stages_and_adapters_one_after_the_other():
    student, whole = blockwise.apart(WIDE, STUDENT, NAMES), models.joined(WIDE, STUDENT, NAMES)
    own = made(student, 2)
    params = {name: x for name, x in own.params.items() if name != "adapters"}

    def by_hand(own):
        cut, way = Stages(STUDENT, NAMES, own._replace(params=params), BATCH), own.params["adapters"]["stage1"]
        x, _ = cut.stage(0, {})
        for side in ("write", "read"):
            x = x @ way[side]["kernel"] + way[side]["bias"][None]
        y, _ = cut.stage(1, {"stage1": x})
        return cut.stage(2, {"stage1": x, "stage2": y})[0]

    def all_ways(own):
        both = student.apply(own, BATCH, None, False), whole.apply(blockwise.finish(own), BATCH, None, False)
        return by_hand(own), both

    expected, (evaluated, joined) = jax.jit(all_ways)(own)
    np.testing.assert_allclose(joined[0].logits, expected, rtol=1e-5)
    equal(evaluated, joined)
    alike = blockwise.apart(TEACHER_NET, STUDENT, NAMES)
    plain = made(STUDENT, 3)
    equal(jax.eval_shape(alike.init, KEY, BATCH), jax.eval_shape(STUDENT.init, KEY, BATCH))
    equal(blockwise.finish(plain), plain)
    same = models.joined(TEACHER_NET, STUDENT, NAMES).apply(plain, BATCH, None, False)
    equal(same, STUDENT.apply(plain, BATCH, None, False))


@pytest.mark.parametrize("teacher", [TEACHER_NET, WIDE], ids=["as wide", "wider"])
def test_probability_0_is_the_teacher_and_1_the_student_bit_for_bit(teacher):
    traces = []

    def run(p, own, known, key):
        traces.append(1)
        student = theseus.replacing_stages(teacher, STUDENT, NAMES, p)
        return student.apply(own, {**BATCH, TEACHER: known}, key, True)

    own, known, run = made(theseus.replacing_stages(teacher, STUDENT, NAMES), 2), made(teacher), jax.jit(run)
    state = {name: x for name, x in own.state.items() if name != "batches"}
    expected, _ = jax.jit(lambda v: teacher.apply(v, BATCH, None, False))(known)
    out, new = run(0.0, own, known, KEY)
    np.testing.assert_array_equal(out.logits, expected.logits)
    equal(dict(out.features), {name: expected.features[name] for name in NAMES})
    equal(new, {**state, "batches": own.state["batches"] + 1})
    whole, alone = models.joined(teacher, STUDENT, NAMES), theseus.finish(own)
    out, new = run(1.0, own, known, KEY)
    expected, moved = jax.jit(lambda v: whole.apply(v, BATCH, KEY, True))(alone)
    if teacher is TEACHER_NET:
        np.testing.assert_array_equal(out.logits, expected.logits)
        equal(new, {**moved, "batches": own.state["batches"] + 1})
    np.testing.assert_allclose(out.logits, expected.logits, rtol=1e-4)  # two adapters are merged into one
    draws = {str(run(0.5, own, known, jax.random.key(i))[0].logits) for i in range(30)}
    assert 4 < len(draws) <= 8
    assert len(traces) == 1


def test_gradients_reach_the_stages_that_were_drawn_and_blocks_of_image_transformers_are_replaced():
    own, known = made(theseus.replacing_stages(TEACHER_NET, STUDENT, NAMES), 2), made(TEACHER_NET)

    def loss(params, p):
        student = theseus.replacing_stages(TEACHER_NET, STUDENT, NAMES, p)
        out, _ = student.apply(own._replace(params=params), {**BATCH, TEACHER: known}, KEY, True)
        return jnp.mean(losses.cross_entropy(out.logits, BATCH["label"]))

    grad = jax.jit(jax.grad(loss))
    assert not any(np.any(x) for x in jax.tree.leaves(grad(own.params, 0.0)))
    assert all(np.any(x["kernel"]) for name, x in grad(own.params, 1.0).items() if "norm" not in name)
    big, small = (models.vision_transformer(3, patch=2, layers=n, width=4, heads=2) for n in (2, 1))
    images = {"image": np.zeros((2, 4, 4, 3), np.float32)}
    shapes = [jax.eval_shape(model.init, KEY, images) for model in (big, small)]
    start = jax.eval_shape(functools.partial(theseus.begin, blocks="block"), shapes[1])
    student = theseus.replacing(big, small, 0.5, blocks="block")
    assert set(start.params) == {"block0"}
    out, _ = jax.eval_shape(lambda v, t: student.apply(v, {**images, TEACHER: t}, KEY, True), start, shapes[0])
    assert out.logits.shape == (2, 3)


def test_side_network_sums_its_modules_and_holds_its_teacher():
    modules = {"stage1": models.mlp(3, hidden=(2,)), "stage2": models.mlp(3, hidden=())}
    reader, whole, known = side_network.reading(WIDE, modules), side_network.whole(WIDE, modules), made(WIDE)
    own = made(reader, 2)

    def run(own, known):
        out, state = reader.apply(own, {**BATCH, TEACHER: known}, KEY, True)
        features = WIDE.apply(known, BATCH, None, False)[0].features
        each = [m.apply(Variables(own.params[n], {}), {"image": features[n]}, None, False)[0].logits
                for n, m in modules.items()]  # fmt: skip
        return out, state, each, whole.apply(side_network.finish(own, known), BATCH, None, False)

    out, state, each, (alone, kept) = jax.jit(run)(own, known)
    np.testing.assert_allclose(out.logits, each[0] + each[1], rtol=1e-6)
    np.testing.assert_array_equal(alone.logits, out.logits)
    equal(kept, {"teacher": known._asdict(), "modules": state})
    with pytest.raises(ValueError, match="needs the teacher's variables"):
        reader.apply(own, BATCH, None, False)
    with pytest.raises(ValueError, match="have no teacher: make them by side_network"):
        whole.apply(own, BATCH, None, False)


def test_what_does_not_fit_gets_a_sentence():
    batch = {**BATCH, TEACHER: made(TEACHER_NET)}
    apart, mixed = blockwise.apart(TEACHER_NET, STUDENT, NAMES), theseus.replacing_stages(TEACHER_NET, STUDENT, NAMES)
    with pytest.raises(ValueError, match="needs its teacher's variables"):
        apart.apply(made(STUDENT), BATCH, KEY, True)
    with pytest.raises(ValueError, match="needs a key"):
        mixed.apply(made(mixed), batch, None, True)
    with pytest.raises(ValueError, match="the teacher has no feature 'stage3' that a stage ends in"):
        jax.eval_shape(blockwise.apart(TEACHER_NET, STUDENT, {"stage1": "stage3"}).init, KEY, BATCH)
    with pytest.raises(ValueError, match="the teacher has no feature 'stage3' for a module"):
        jax.eval_shape(side_network.reading(WIDE, {"stage3": STUDENT}).init, KEY, BATCH)
    for stages in ((), "stage1", ("stage1", "stage1"), {"stage1": "a", "stage2": "a"}):
        with pytest.raises(ValueError, match="give different features that they end in"):
            blockwise.apart(TEACHER_NET, STUDENT, stages)
    image = {"image": np.zeros((2, 8, 8, 3), np.float32)}
    nets = [models.convnet(3, widths=widths) for widths in ((2, 4), (4, 4, 2))]
    with pytest.raises(ValueError, match=r"'stage2' has shape .*choose features of one resolution"):
        jax.eval_shape(blockwise.apart(*nets, {"stage2": "stage1"}).init, KEY, image)
    crossed = theseus.replacing_stages(TEACHER_NET, STUDENT, {"stage1": "stage2", "stage2": "stage1"})
    with pytest.raises(ValueError, match="in the order"):
        jax.eval_shape(lambda: crossed.apply(made(mixed), batch, KEY, True))
    with pytest.raises(ValueError, match="at least one module"):
        side_network.reading(WIDE, {})
