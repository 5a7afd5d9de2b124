"""The chunked loss against the dense one: values, all gradients, memory, work."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from losses.programs import differentiated, run

from jaxkd import losses, numerics
from jaxkd.kernels.vocabulary import Pulled, _by_columns, _by_rows
from jaxkd.losses.chunked import chunked_kl, chunked_loss
from jaxkd.losses.sequence import masked_token_kl
from jaxkd.parallel import DATA, make_mesh

SIDES = ("student_hidden", "teacher_hidden", "student_head", "teacher_head")


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(*shape, seed=0, scale=2.0):
    return scale * np.random.default_rng((seed, *shape)).standard_normal(shape)


def problem(lead=(37,), sizes=(5, 7), K=11, biases=True, seed=0):
    """Every floating input of `chunked_kl`, in float64."""
    D, E = sizes
    x = {
        "student_hidden": draw(*lead, D, seed=seed),
        "teacher_hidden": draw(*lead, E, seed=seed + 1),
        "student_head": draw(D, K, seed=seed + 2, scale=D**-0.5),
        "teacher_head": draw(E, K, seed=seed + 3, scale=E**-0.5),
        "temperature": np.asarray(2.0),
        "mask": np.random.default_rng(seed).choice([0.0, 0.5, 1.0], lead, p=[0.3, 0.2, 0.5]),
    }
    x["mask"].flat[0] = 1
    return x | ({"student_bias": draw(K, seed=seed + 4), "teacher_bias": draw(K, seed=seed + 5)} if biases else {})


def dense_kl(x):
    def logits(side):
        z = x[f"{side}_hidden"] @ x[f"{side}_head"]
        return z + numerics.per_example(x[f"{side}_bias"], z.T).T if f"{side}_bias" in x else z

    student, teacher = logits("student"), logits("teacher")
    return masked_token_kl(student, teacher, x.get("mask", jnp.ones(student.shape[:-1])), temperature=x["temperature"])


def chunked(x, chunk=None):
    return chunked_kl(*(x[name] for name in SIDES), **{k: v for k, v in x.items() if k not in SIDES}, chunk=chunk)


def cast(x, dtype):
    return {name: np.asarray(value, dtype) for name, value in x.items()}


@functools.cache
def chunks_of(size):
    return functools.partial(chunked, chunk=size)


def value_and_gradients(loss, x):
    value, (gradients,) = differentiated(loss, 0)(x)
    return value, gradients


def assert_close(got, wanted, tolerance):
    for name, gradient in wanted.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(got[name], gradient, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize(
    ("lead", "sizes", "chunk", "biases"),
    [
        ((37,), (5, 7), 8, True),  # chunks of 8, 8, 8, 8, 5
        ((37,), (5, 7), 1, False),
        ((2, 2, 3), (257, 130), 1000, True),  # one chunk; heads in three and two blocks of rows
        ((1,), (1, 2), None, True),
        ((2, 33), (3, 3), None, False),
    ],
)
def test_chunked_kl_has_the_value_and_every_gradient_of_the_dense_loss(lead, sizes, chunk, biases):
    x = problem(lead, sizes, biases=biases)
    by_chunks = chunks_of(chunk)
    with jax.enable_x64(True):
        exact, exact_gradients = value_and_gradients(dense_kl, cast(x, jnp.float64))
        value, gradients = value_and_gradients(by_chunks, cast(x, jnp.float64))
        np.testing.assert_allclose(value, exact, rtol=1e-13)
        assert_close(gradients, exact_gradients, 1e-12)
    value, gradients = value_and_gradients(by_chunks, cast(x, jnp.float32))
    np.testing.assert_allclose(value, exact, rtol=2e-6)
    assert_close(gradients, exact_gradients, 1e-5)


def test_the_value_alone_is_the_same_as_with_gradients():
    x = cast(problem(), jnp.float32)
    by_chunks = chunks_of(8)
    np.testing.assert_allclose(run(by_chunks, x), value_and_gradients(by_chunks, x)[0], rtol=1e-6)


def test_gradients_of_a_few_inputs_are_scaled_by_what_the_loss_is_multiplied_with():
    x = cast(problem(), jnp.float32)
    few = {name: x[name] for name in ("student_hidden", "teacher_bias", "mask")}
    _, gradients = value_and_gradients(lambda few: 3 * chunked(x | few, chunk=8), few)
    _, wanted = value_and_gradients(lambda few: dense_kl(x | few), few)
    assert_close(gradients, {name: 3 * g for name, g in wanted.items()}, 1e-5)


def count_products(moving, platform):
    x = cast(problem(biases=False), jnp.float32)
    x = {name: x[name] for name in SIDES} | {"temperature": x["temperature"]}
    still = {k: v for k, v in x.items() if k not in moving}

    def loss(part, still):
        return chunked(still | part, chunk=8)

    # With the gradient taken outside of jit, and before XLA, nothing is removed afterwards that nobody asked for.
    compute = jax.grad(jax.jit(loss)) if moving else jax.jit(loss)
    traced = jax.jit(compute, keep_unused=True).trace({k: x[k] for k in moving}, still)
    return traced.lower(lowering_platforms=(platform,)).as_text().count("dot_general")


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_no_more_matrix_products_than_the_dense_loss_and_none_for_what_is_frozen(platform):
    assert count_products((), platform) == 2
    assert count_products(("student_hidden",), platform) == 3
    assert count_products(("student_head",), platform) == 3
    assert count_products(("student_hidden", "student_head"), platform) == 4
    assert count_products(SIDES, platform) == 6


@pytest.mark.parametrize("form", [_by_columns, _by_rows])
@pytest.mark.parametrize(("width", "classes"), [(3, 5), (256, 2048), (300, 2500)])
def test_blocks_of_a_head_s_gradient_add_up_whether_even_or_not(form, width, classes):
    rng = np.random.default_rng(0)
    hidden, kernel, d_logits, before = (
        rng.standard_normal(shape) for shape in [(7, width), (width, classes), (7, classes), (width, classes)]
    )
    wanted = d_logits @ kernel.T, before + hidden.T @ d_logits
    sides = [np.float32(side) for side in (hidden, kernel, d_logits)]
    for hidden_too, kernel_too in [(True, True), (True, False), (False, True)]:
        start = Pulled(np.zeros_like(sides[0]) if hidden_too else None, np.float32(before) if kernel_too else None)
        pulled = jax.jit(form)(start, *sides)
        assert (pulled.hidden is None, pulled.kernel is None) == (not hidden_too, not kernel_too)
        for side, exact in zip(pulled, wanted, strict=True):
            if side is not None:
                np.testing.assert_allclose(side, exact, rtol=1e-5, atol=2e-4)


def test_only_cpus_cut_the_vocabulary():
    """Elsewhere devices may share it, and a cut through what is shared would be gathered first."""
    sides = [jnp.zeros(shape) for shape in [(16, 8), (16, 8), (8, 3000), (8, 3000)]]
    traced = jax.jit(jax.grad(functools.partial(chunked_kl, chunk=8), argnums=(0, 2))).trace(*sides)
    texts = [traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")]
    assert ["tensor<8x1024xf32>" in text for text in texts] == [True, False, False]


def test_memory_is_less_than_an_eighth_of_the_dense_loss():
    N, D, K = 256, 256, 8192
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((N, D), (N, D), (D, K), (D, K))]

    def temporary_bytes(loss, differentiate):
        def f(*sides):
            return loss(dict(zip(SIDES, sides, strict=True)) | {"temperature": jnp.float32(2)})

        f = jax.value_and_grad(f, argnums=(0, 2)) if differentiate else f
        return jax.jit(f).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    for differentiate in (False, True):
        dense = temporary_bytes(dense_kl, differentiate)
        assert dense >= 2 * N * K * 4  # both logits: the measure sees what it should
        assert temporary_bytes(chunks_of(16), differentiate) <= dense / 8


def test_tied_heads_get_both_sides_gradients_and_embeddings_enter_transposed():
    x = problem(sizes=(5, 5), biases=False)
    embedding = jnp.asarray(x["student_head"].T, jnp.float32)

    def tied(loss):
        def of_embedding(e):
            return loss(cast(x, jnp.float32) | {"student_head": e["E"].T, "teacher_head": e["E"].T})

        return value_and_gradients(of_embedding, {"E": embedding})[1]

    assert_close(tied(chunks_of(8)), tied(dense_kl), 1e-5)


def test_bfloat16_is_computed_in_float32_and_gets_its_gradient_back_in_bfloat16():
    x = cast(problem(), jnp.bfloat16) | {"temperature": jnp.float32(2)}
    wide = cast(x, jnp.float32)
    value, gradients = value_and_gradients(chunks_of(8), x)
    assert value.dtype == jnp.float32
    assert gradients["student_head"].dtype == gradients["student_hidden"].dtype == jnp.bfloat16
    exact, wanted = value_and_gradients(dense_kl, wide)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    # Rounded to eight bits once, at the end: half a unit in the last place of each entry.
    for name in SIDES:
        np.testing.assert_allclose(gradients[name].astype(np.float32), wanted[name], rtol=2**-8, atol=1e-6)


def test_chunked_kl_is_exactly_zero_and_flat_for_equal_sides():
    x = cast(problem(sizes=(5, 5)), jnp.float32)
    x |= {f"teacher_{what}": x[f"student_{what}"] for what in ("hidden", "head", "bias")}
    value, gradients = value_and_gradients(chunks_of(8), x)
    assert value == 0
    for name in SIDES:
        np.testing.assert_allclose(gradients[name], 0, atol=1e-7)


@jax.jit
def dirty_chunks(x, kept):
    return jax.value_and_grad(lambda x: chunked(x | {"mask": kept}, chunk=8))(x)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_padding_and_absent_classes_leave_value_and_gradients_finite(scale):
    x = {name: value.astype(np.float32) for name, value in problem(K=6).items()}
    kept = x["mask"] > 0
    clean = x | {"student_hidden": np.float32(scale) * x["student_hidden"]}
    dirty = clean | {h: np.where(kept[:, None], clean[h], np.float32(np.nan)) for h in SIDES[:2]}
    dirty |= {b: np.where(np.arange(6) == 2, np.float32(-np.inf), x[b]) for b in ("student_bias", "teacher_bias")}
    dirty = {k: v for k, v in dirty.items() if k != "mask"}
    value, gradients = dirty_chunks(dirty, kept)
    others = [0, 1, 3, 4, 5]
    fewer = clean | {n: clean[n][..., others] for n in ("student_head", "teacher_head", "student_bias", "teacher_bias")}
    np.testing.assert_allclose(value, run(dense_kl, fewer | {"mask": kept}), rtol=1e-5)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
    np.testing.assert_array_equal(gradients["student_head"][:, 2], 0)


def test_no_valid_token_gives_zero_and_no_gradient():
    x = cast(problem(), jnp.float32) | {"mask": jnp.zeros(37)}
    value, gradients = value_and_gradients(chunked, x)
    assert value == 0
    for gradient in gradients.values():
        np.testing.assert_array_equal(gradient, 0)


def test_a_batch_over_eight_devices_gives_what_one_device_gives():
    x = cast(problem(lead=(16, 3)), jnp.float32)
    mesh = make_mesh()
    split, whole = (NamedSharding(mesh, PartitionSpec(*p)) for p in ((DATA,), ()))
    placed = {k: jax.device_put(v, split if k in (*SIDES[:2], "mask") else whole) for k, v in x.items()}
    compute = jax.jit(jax.value_and_grad(chunks_of(16)))
    (value, gradients), (expected, wanted) = (on_eight := compute.lower(placed).compile())(placed), compute(x)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_close(gradients, wanted, 1e-5)
    # Every device works on tokens of its own in every chunk: hidden states stay where they are.
    assert not re.search(r"all-gather|all-to-all|collective-permute", on_eight.as_text())


def test_any_logits_loss_can_be_chunked_and_numbers_may_differ_by_token():
    x = cast(problem(lead=(4, 9), biases=False), jnp.float32)

    def offset_mse(s, t, *, temperature, offset):
        return losses.logits_mse(s, t, temperature=temperature) * offset

    def dense(x, T):
        s, t = (x[f"{side}_hidden"] @ x[f"{side}_head"] for side in ("student", "teacher"))
        return numerics.masked_mean(offset_mse(s, t, temperature=T[:, None].repeat(9, 1), offset=jnp.float32(3)))

    def by_chunks(x, T):
        return chunked_loss(offset_mse, *(x[n] for n in SIDES), chunk=5, temperature=T, offset=3.0)

    T = jnp.array([1.0, 2.0, 3.0, 4.0])
    compute = (jax.jit(jax.value_and_grad(f, argnums=(0, 1))) for f in (by_chunks, dense))
    (value, (got, got_T)), (exact, (wanted, wanted_T)) = (f(x, T) for f in compute)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    assert_close({n: got[n] for n in SIDES} | {"T": got_T}, {n: wanted[n] for n in SIDES} | {"T": wanted_T}, 1e-5)


def test_the_order_of_the_tokens_does_not_matter():
    x = cast(problem(), jnp.float32)
    order = np.random.default_rng(0).permutation(37)
    moved = x | {n: x[n][order] for n in (*SIDES[:2], "mask")}
    np.testing.assert_allclose(run(chunks_of(8), moved), run(chunks_of(8), x), rtol=1e-6)


def test_shapes_that_do_not_fit_are_named():
    x = problem()
    with pytest.raises(ValueError, match=r"hidden states have shape \(37, 5\).*hidden states have shape \(36, 7\)"):
        jax.eval_shape(chunked, x | {"teacher_hidden": x["teacher_hidden"][1:]})
    with pytest.raises(ValueError, match=r"student head has shape \(11, 5\).*\(5, classes\), transposed"):
        jax.eval_shape(chunked, x | {"student_head": x["student_head"].T})
    with pytest.raises(ValueError, match=r"different numbers of classes \(11 and 9, heads \(5, 11\) and \(7, 9\)\)"):
        jax.eval_shape(chunked, x | {"teacher_head": x["teacher_head"][:, :9], "teacher_bias": x["teacher_bias"][:9]})
    with pytest.raises(ValueError, match=r"teacher bias has shape \(10,\)"):
        jax.eval_shape(chunked, x | {"teacher_bias": x["teacher_bias"][1:]})
    with pytest.raises(ValueError, match=r"mask has shape \(36,\) but the tokens have shape \(37,\)"):
        jax.eval_shape(chunked, x | {"mask": x["mask"][1:]})
    with pytest.raises(ValueError, match="37 tokens in chunks of 0"):
        chunked(x, chunk=0)
