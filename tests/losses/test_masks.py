"""What a mask leaves out reaches neither a loss nor its gradient: it is selected before the loss, as 0 * NaN is NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, numerics

B, S, K, D = 3, 4, 5, 4
RNG, SHIFT = np.random.default_rng(0), np.float32(0.1)
MASK = np.asarray([[1, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0]], bool)
OF_LOGITS = (
    losses.kd,
    losses.logits_mse,
    losses.spherical_kd,
    losses.reverse_kl,
    losses.jeffreys,
    losses.jsd,
    losses.skew_kl,
    losses.skew_reverse_kl,
    losses.tvd,
    losses.uld,
    losses.ttm,
    losses.wttm,
    losses.hidden_mse,
    losses.cosine,
)
COUNT = len(OF_LOGITS) + 12


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


STUDENT, TEACHER = draw(B, S, K), draw(B, S, K)
QKV = draw(2, B, S, 3, D)
IDS = np.argsort(-TEACHER, axis=-1)[..., :3]


def at_tokens(x, mask, rubbish):
    """x [B, S, ...] with rubbish where the mask is 0."""
    return jnp.where(jnp.expand_dims(mask > 0, tuple(range(2, x.ndim))), x, rubbish.astype(x.dtype))


def all_losses(shifts, mask, rubbish):
    """Values of every loss with a mask, of a student moved by a shift of its own, with rubbish where the mask is 0."""
    fill = functools.partial(at_tokens, mask=mask, rubbish=rubbish)
    t, rest = fill(jnp.asarray(TEACHER)), iter(shifts)
    s = lambda x=STUDENT: fill(x + next(rest))  # noqa: E731
    found = {loss.__name__: losses.token_level(loss)(s(), t, mask) for loss in OF_LOGITS}
    tokens = jnp.where(mask > 0, np.argmax(TEACHER, axis=-1).astype(np.int32), -100)
    found["cross_entropy"] = losses.token_level(losses.cross_entropy)(s(), tokens, mask)
    found["sequence_kd"] = losses.sequence_kd(s(), tokens, mask)
    found["masked_token_kl"] = losses.masked_token_kl(s(), t, mask)
    found["ctc_frame_kd"] = losses.ctc_frame_kd(s(), t, mask, blank_weight=0.5)
    found["pixel_kd"] = losses.pixel_kd(s(), t, mask=mask)
    found["chunked_kl"] = losses.chunked_kl(s(), t, jnp.eye(K), jnp.eye(K), mask=mask)
    kept = fill(jnp.take_along_axis(jax.nn.log_softmax(TEACHER), IDS, axis=-1))
    found["ranking_hinge"] = losses.ranking_hinge(s(), IDS, kept, mask > 0)
    found["ranking_logistic"] = losses.ranking_logistic(s(), IDS, kept, mask > 0)
    qkv = [jnp.moveaxis(x, 2, 1) for x in (s(QKV[0]), fill(jnp.asarray(QKV[1])))]
    found["minilm"] = losses.minilm(*qkv, mask > 0, attention_heads=2)
    low = jnp.zeros((B, 2, S, K))
    found["vitkd"] = losses.vitkd(low, low, s(), t, mask > 0, beta=1.0)
    classes = jnp.where(mask > 0, 1, 255).astype(jnp.int32)
    maps = (x.reshape(B, 2, S // 2, K) for x in (s(), t))
    found["ifvd"] = losses.ifvd(*maps, classes.reshape(B, 2, S // 2), num_classes=3)
    length, start = jnp.sum(mask > 0, axis=1).astype(jnp.int32), jnp.zeros(B, jnp.int32)
    inside = jnp.arange(S)[None] < length[:, None]
    a, b = (at_tokens(jnp.asarray(x), inside, rubbish) for x in (STUDENT + next(rest), TEACHER))
    found["uld_answers"] = losses.uld_answers(a, b, start, length, start, length)
    return found


@jax.jit
def program(mask, rubbish):
    """Values, and the derivative of each in its own shift, in one program."""

    def total(shifts):
        values = {n: jnp.sum(v) for n, v in all_losses(shifts, mask, rubbish).items()}
        return sum(values.values()), values

    slopes, values = jax.grad(total, has_aux=True)([SHIFT] * COUNT)
    return values, dict(enumerate(slopes))


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf, 1e30])
def test_what_a_mask_leaves_out_changes_neither_value_nor_gradient(rubbish):
    expected, found = (program(MASK.astype(np.float32), np.float32(r)) for r in (0.5, rubbish))
    for one, other in zip(expected, found, strict=True):
        for name in one:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-6, err_msg=str(name))
            assert np.isfinite(one[name]), name


def test_a_mask_without_an_entry_gives_zero():
    for found in program(np.zeros((B, S), np.float32), np.float32(np.nan)):
        assert {name: float(x) for name, x in found.items()} == dict.fromkeys(found, 0.0)


def test_masks_may_be_weights_and_sides_of_half_precision():
    weights = np.where(MASK, 0.5, 0).astype(np.float16)
    t = jnp.where(MASK[..., None], TEACHER, np.nan).astype(jnp.bfloat16)
    found = losses.masked_token_kl(STUDENT.astype(np.float16), t, weights)
    exact = losses.masked_token_kl(STUDENT, TEACHER, MASK)
    np.testing.assert_allclose(found, exact, rtol=2e-2)
    (kept,) = numerics.masked(np.asarray([0.5, 0.0]), jnp.asarray([[3, 4], [5, 6]]))
    np.testing.assert_array_equal(kept, [[3, 4], [0, 0]])
