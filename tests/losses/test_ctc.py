"""CTC losses against an enumeration of all alignments, optax, and float64 twins; planted mistakes are noticed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from losses.programs import compiled, differentiated, run
from losses.test_mutations import mutate

from jaxkd import losses, metrics
from jaxkd.losses import ctc

B, T, K = 4, 5, 4
FRAMES = np.arange(T) < np.array([5, 4, 3, 0])[:, None]
LABELS = np.array([[1, 1, 3], [2, 9, 9], [3, 2, -1], [7, 7, 7]])
GIVEN = np.arange(3) < np.array([3, 1, 2, 0])[:, None]


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(*shape, seed=0):
    return 2 * np.random.default_rng((seed, *shape)).standard_normal(shape)


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def twin(z, labels, frames, given, blank=0):
    """Minus the logarithm of the summed probabilities of all paths that give each text, in float64."""
    found = []
    for row, y, real, m in zip(log_softmax(z), labels, frames, given, strict=True):
        log_p, wanted = row[real], tuple(y[m])
        paths = itertools.product(range(z.shape[-1]), repeat=len(log_p))
        texts = ((p, tuple(k for k, _ in itertools.groupby(p) if k != blank)) for p in paths)
        found.append(-np.log(sum(np.exp(sum(log_p[t, k] for t, k in enumerate(p))) for p, y in texts if y == wanted)))
    return np.array(found)


def twin_of_frames(s, t, frames, *, temperature, blank_weight, margin, delay, blank=0):
    """Weighted KL of each pair of frames, one after the other, in float64."""
    found = np.zeros(len(s))
    for b, frame in itertools.product(range(len(s)), range(s.shape[1] - delay)):
        if not (frames[b, frame] and frames[b, frame + delay]):
            continue
        near = [n for n in range(frame - margin, frame + margin + 1) if 0 <= n < s.shape[1] and frames[b, n]]
        weight = 1 if any(t[b, n].argmax() != blank for n in near) else blank_weight
        log_p, log_q = log_softmax(t[b, frame] / temperature), log_softmax(s[b, frame + delay] / temperature)
        found[b] += weight * temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum()
    return found


@pytest.mark.parametrize("blank", [0, K - 1])
def test_ctc_is_the_sum_over_all_alignments(blank):
    z, labels = draw(B, T, K), np.where(GIVEN & (blank == LABELS), 0, LABELS)
    expected = twin(z, labels, FRAMES, GIVEN, blank)
    assert expected[-1] == 0
    found = run(
        ctc.ctc_loss, np.where(FRAMES[..., None], z, np.nan).astype(np.float32), labels, FRAMES, GIVEN, blank=blank
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_ctc_has_the_values_and_gradients_of_optax():
    z, rng = draw(6, 20, 5).astype(np.float32), np.random.default_rng(0)
    labels, frames = rng.integers(1, 5, (6, 7)), np.arange(20) < rng.integers(15, 21, (6, 1))
    given = np.arange(7) < rng.integers(1, 8, (6, 1))
    value, (gradient,) = differentiated(ctc.ctc_loss, 0)(z, labels, frames, given)
    peer = jax.jit(jax.value_and_grad(lambda z: optax.ctc_loss(z, 1.0 - frames, labels, 1.0 - given).sum()))
    with jax.numpy_dtype_promotion("standard"):
        other, slope = peer(z)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-5)
    assert (gradient[~frames] == 0).all()


def test_padding_may_stand_anywhere():
    z = draw(B, T, K).astype(np.float32)
    arrays = z, LABELS, FRAMES, GIVEN
    moved = (np.pad(x, [(0, 0), (2, 1), (0, 0)][: x.ndim]) for x in arrays)
    np.testing.assert_allclose(run(ctc.ctc_loss, *moved), run(ctc.ctc_loss, *arrays), rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "frames", "z"),
    [
        ([1, 1], 2, 0.0),  # needs a blank in between
        ([1, 2, 3], 2, 0.0),
        ([1, 0], T, 0.0),  # the blank is no label
        ([2, 1], T, -np.inf),  # a class without probability
    ],
)
def test_a_text_without_an_alignment_is_nan(labels, frames, z):
    logits = np.zeros((2, T, K), np.float32)
    logits[0, :, 2] = z
    y = np.array([labels, [1, 2, 3][: len(labels)]])
    given = np.broadcast_to(np.arange(3) < len(labels), (2, 3))
    mask = np.arange(T) < np.array([[frames], [T]])
    value, (slope,) = differentiated(ctc.ctc_loss, 0)(logits, np.pad(y, ((0, 0), (0, 3 - y.shape[1]))), mask, given)
    assert np.isnan(value)
    assert np.isnan(slope[0]).any()
    assert np.isfinite(slope[1]).all()


def test_texts_of_the_host_that_have_too_few_frames_are_refused():
    z = jnp.zeros((2, 3, K))
    with pytest.raises(ValueError, match=r"the text of row 1 needs 4 frames but has 3"):
        ctc.ctc_loss(z, np.array([[1, 2, 1], [1, 2, 2]]))
    with pytest.raises(ValueError, match=r"needs at least as many frames as labels"):
        jax.eval_shape(ctc.ctc_loss, z, jax.ShapeDtypeStruct((2, 4), jnp.int32))
    assert ctc.frames_needed(LABELS, GIVEN).tolist() == [4, 1, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.zeros((2, 3)), np.ones((2, 1), int)), {}, r"give logits of frames \[B, T, K\]"),
        ((np.zeros((2, 3, K)), np.ones((2, 1), int)), {"blank": K}, "blank is 4, which is none of 4 classes"),
        ((np.zeros((2, 3, K)), np.ones((2, 1), int), np.ones((2, 2))), {}, "frame_mask has shape"),
        ((np.zeros((2, 3, K)), np.ones((2, 1), int), None, np.ones(2)), {}, "text_mask has shape"),
    ],
)
def test_ctc_refuses_other_shapes(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ctc.ctc_loss(*arguments, **options)


def test_sequence_kd_weighs_the_losses_of_the_teachers_texts():
    z = draw(B, T, K).astype(np.float32)
    texts, masks = np.stack([LABELS, LABELS[:, ::-1]], 1)[:3], np.stack([GIVEN, GIVEN[:, ::-1]], 1)[:3]
    weights = np.array([[0.75, 0.25], [1.0, 0.0], [0.5, 0.5]], np.float32)
    each = np.stack([twin(z[:3].astype(float), texts[:, n], FRAMES[:3], masks[:, n]) for n in (0, 1)], 1)
    found = run(ctc.ctc_sequence_kd, z[:3], texts, weights, FRAMES[:3], masks)
    np.testing.assert_allclose(found, (weights * each).sum(1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"give \[B, T, K\], \[B, N, L\] and \[B, N\]"):
        ctc.ctc_sequence_kd(z, texts, weights)


OPTIONS = [
    {"temperature": 1.0, "blank_weight": 1.0, "margin": 0, "delay": 0},
    {"temperature": 2.0, "blank_weight": 0.25, "margin": 0, "delay": 0},
    {"temperature": 1.0, "blank_weight": 0.0, "margin": 1, "delay": 2},
]


def sides():
    s, t = draw(B, T, K), draw(B, T, K, seed=1)
    t[..., 0] += 2  # blanks in most frames
    return s, t


@pytest.mark.parametrize("options", OPTIONS, ids=["all frames", "few blanks", "margin and delay"])
def test_frame_kd_equals_its_twin_and_kd_where_all_frames_count(options):
    s, t = sides()
    padded = (np.where(FRAMES[..., None], x, np.nan).astype(np.float32) for x in (s, t))
    found = run(ctc.ctc_frame_kd, *padded, FRAMES, **options)
    expected = twin_of_frames(s, t, FRAMES, **options)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    assert expected[-1] == 0
    if options == OPTIONS[0]:
        each = compiled(losses.kd, temperature=1.0)(s.astype(np.float32), t.astype(np.float32))
        np.testing.assert_allclose(found, np.where(FRAMES, each, 0).sum(1), rtol=1e-5, atol=1e-6)


def test_frame_kd_refuses_margins_and_delays_that_are_none():
    s, t = (x.astype(np.float32) for x in sides())
    for name, number in (("margin", -1), ("delay", T)):
        with pytest.raises(ValueError, match=rf"{name} is {number}: give a number of frames in 0..{T - 1}"):
            ctc.ctc_frame_kd(s, t, **{name: number})
    with pytest.raises(ValueError, match="mask has shape"):
        ctc.ctc_frame_kd(s, t, FRAMES[:, 1:])


MISTAKES = [
    ("ctc_frame_kd", r"temperature=temperature", "temperature=1.0"),
    ("ctc_frame_kd", r"own, other\), temperature", "other, own), temperature"),
    ("ctc_frame_kd", r"own\[:, delay:\], other\[:, :-delay\]", "own[:, :-delay], other[:, delay:]"),
    ("ctc_frame_kd", r"labelled\[:, :-n\]", "labelled[:, n:]"),
    ("ctc_frame_kd", r"!= blank", "!= blank + 1"),
    ("_negative_log_likelihood", r"y\[:, 1:\] != y\[:, :-1\]", "y[:, 1:] == y[:, 1:]"),
    ("_negative_log_likelihood", r"2 \* length - 1, 0", "2 * length - 2, 0"),
    ("_negative_log_likelihood", r"jnp\.where\(now\[1\]\[:, None\], (.*), alpha\), None", r"\1, None"),
    ("_negative_log_likelihood", r"later\(alpha, 1\), ", ""),
]


@pytest.mark.parametrize(("name", "pattern", "replacement"), MISTAKES)
def test_planted_mistakes_are_noticed(name, pattern, replacement, monkeypatch):
    mutant = mutate(getattr(ctc, name), pattern, replacement)
    assert mutant is not None
    monkeypatch.setattr(ctc, name, mutant)
    if name == "ctc_frame_kd":
        s, t = sides()
        pairs = [(run(mutant, s, t, FRAMES, **o), twin_of_frames(s, t, FRAMES, **o)) for o in OPTIONS[1:]]
    else:
        z = draw(B, T, K)
        pairs = [(jax.jit(lambda *x: ctc.ctc_loss(*x))(z, LABELS, FRAMES, GIVEN), twin(z, LABELS, FRAMES, GIVEN))]
    assert not all(np.allclose(found, expected, rtol=1e-4, atol=1e-4) for found, expected in pairs)


def test_a_network_learns_a_text_by_ctc():
    """Within one jitted step, on outputs of a layer: the text is what greedy decoding reads in the end."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((2, 12, 6)).astype(np.float32), np.array([[1, 1, 2], [3, 2, 0]])
    given = np.array([[1, 1, 1], [1, 1, 0]], bool)
    optimizer = optax.adam(0.1)

    @jax.jit
    def fit(w):
        def step(carry, _):
            w, state = carry
            gradient = jax.grad(lambda w: ctc.ctc_loss(x @ w, labels, None, given).mean())(w)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(w, updates), state), None

        return jax.lax.scan(step, (w, optimizer.init(w)), length=150)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # for the optimizer
        w = fit(0.1 * rng.standard_normal((6, K)).astype(np.float32))
    found, mask = metrics.greedy_ctc(x @ w)
    assert [y[m].tolist() for y, m in zip(np.asarray(found), np.asarray(mask), strict=True)] == [[1, 1, 2], [3, 2]]
