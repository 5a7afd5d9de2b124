"""Attacks against closed forms and slow NumPy twins, and that no perturbation leaves its ball or the valid pixels."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.train import attacks, perturbations
from jaxkd.train.perturbations import L2, LINF, Range
from jaxkd.types import Model, Outputs, Variables

B, H, K = 5, 6, 4
LABELS = np.array([0, 1, 2, 3, 1])
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (B, H, H, 1))
IMAGES[:, 0, 0] = 0  # black and white pixels, which can move one way alone
IMAGES[:, 0, 1] = 1
W = RNG.standard_normal((H * H, K))
HIDDEN = RNG.standard_normal((H * H, 8)) / 3, RNG.standard_normal((8, K))


def linear(x):
    return x.reshape(x.shape[0], -1) @ W


def curved(x):
    """A network with one hidden layer."""
    return jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ HIDDEN[0]) @ HIDDEN[1]


def attempts_on(network, loss=losses.cross_entropy, images=IMAGES):
    def attempt(perturbation):
        z = network(images + perturbation)
        return attacks.Attempt(loss(z, LABELS), jnp.argmax(z, axis=-1) != LABELS)

    return attempt


ATTACKS = {
    "fgsm": lambda attempts, ball, key: attacks.fgsm(attempts, ball),
    "pgd": lambda attempts, ball, key: attacks.pgd(
        attempts, ball, ball.start(key), steps=8, step_size=ball.epsilon / 3, keep_best=True
    ),
    "apgd": lambda attempts, ball, key: attacks.apgd(attempts, ball, ball.start(key), steps=12),
}


@functools.cache
def run(name, norm, network, loss=losses.cross_entropy):
    """An attack in one program, of any epsilon, in float64."""

    @jax.jit
    def found(epsilon):
        ball = perturbations.UNIT.ball(jnp.asarray(IMAGES), epsilon, norm)
        return ATTACKS[name](attempts_on(network, loss), ball, jax.random.key(3))

    return found


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


# --- linear networks, of which the optimum is known


@pytest.mark.parametrize("name", ATTACKS)
def test_two_classes_of_a_linear_network_are_attacked_to_the_optimum(name):
    """Then the loss is a rising function of w . d alone: in the box each pixel goes to its end on w's side."""
    w = W[:, 0] - W[:, 1]

    def two(x):
        return jnp.stack([x.reshape(B, -1) @ W[:, 0], x.reshape(B, -1) @ W[:, 1]], axis=-1)

    sign = np.where(LABELS % 2 == 0, -1, 1)  # a label 0 is fooled by less w . x
    attempt = lambda d: attacks.Attempt(losses.cross_entropy(two(IMAGES + d), LABELS % 2), jnp.zeros(B, bool))  # noqa: E731
    ball = perturbations.UNIT.ball(jnp.asarray(IMAGES), 0.2)
    found = jax.jit(lambda key: ATTACKS[name](attempt, ball, key))(jax.random.key(0))
    towards = (sign[:, None] * w).reshape(B, H, H, 1)
    best = np.clip(IMAGES + 0.2 * np.sign(towards), 0, 1) - IMAGES
    np.testing.assert_allclose(found.perturbation, best, atol=1e-12)
    ball = Range(-100.0, 100.0).ball(jnp.asarray(IMAGES), 0.2, L2)  # no pixel is near an end
    found = jax.jit(lambda: attacks.fgsm(attempt, ball))()
    np.testing.assert_allclose(found.perturbation, 0.2 * towards / np.linalg.norm(w), atol=1e-12)


# --- slow twins on a network with a hidden layer


def numpy_attempt(x, y, loss):
    """Value and gradient in x [D] of the loss of one example."""
    h = np.tanh((x - 0.5) @ HIDDEN[0])
    z = h @ HIDDEN[1]
    if loss is losses.cross_entropy:
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        value, dz = -np.log(p[y]), p - np.eye(K)[y]
    else:
        first, second, third = np.argsort(-z)[:3]
        other = second if first == y else first
        span, margin = z[first] - z[third], z[other] - z[y]
        value = margin / span
        dz = (np.eye(K)[other] - np.eye(K)[y]) / span - margin / span**2 * (np.eye(K)[first] - np.eye(K)[third])
    return value, HIDDEN[0] @ ((HIDDEN[1] @ dz) * (1 - h**2)), z.argmax() != y


def numpy_project(d, image, epsilon, norm):
    if norm is LINF:
        d = np.clip(d, -epsilon, epsilon)
    elif np.linalg.norm(d) > epsilon:
        d = d * epsilon / np.linalg.norm(d)
    return np.clip(image + d, 0, 1) - image


class PlateauError(Exception):
    """The loss is flat, so that the direction of its gradient is one of rounding."""


def numpy_direction(g, norm):
    if np.linalg.norm(g) < 1e-9:
        raise PlateauError
    return np.sign(g) if norm is LINF else g / (np.linalg.norm(g) or 1)


def numpy_pgd(image, y, start, epsilon, norm, loss, steps, eta):
    """The best of all points, the clean image first."""
    points, d = [0 * start], start
    for _ in range(steps):
        points.append(d)
        d = numpy_project(d + eta * numpy_direction(numpy_attempt(image + d, y, loss)[1], norm), image, epsilon, norm)
    points.append(d)
    tried = [numpy_attempt(image + d, y, loss) for d in points]
    best = int(np.argmax([value for value, _, _ in tried]))
    return points[best], tried[best][0], any(fooled for _, _, fooled in tried)


def numpy_apgd(image, y, start, epsilon, norm, loss, N):
    """Algorithm 1 of the paper, line by line, with the clean image as a last candidate."""
    f = lambda d: numpy_attempt(image + d, y, loss)  # noqa: E731
    P = lambda d: numpy_project(d, image, epsilon, norm)  # noqa: E731
    up = lambda d: numpy_direction(f(d)[1], norm)  # noqa: E731
    p = [0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(x * N, 6)) for x in p if math.ceil(round(x * N, 6)) <= N]
    x = [start]
    eta = 2 * epsilon
    x.append(P(x[0] + eta * up(x[0])))
    tried = list(x)
    best = max(x, key=lambda d: f(d)[0])
    rises = [f(x[1])[0] > f(x[0])[0]]
    last = {"eta": None, "best": f(x[0])[0]}
    for k in range(1, N + 1):
        if k in w[1:]:
            before = w[w.index(k) - 1]
            few = sum(rises[before:k]) < 0.75 * (k - before)
            same = last["eta"] == eta and last["best"] == f(best)[0]
            last = {"eta": eta, "best": f(best)[0]}
            if few or same:
                eta = eta / 2
                x[k] = best
        if k == N:
            break
        z = P(x[k] + eta * up(x[k]))
        new = P(x[k] + 0.75 * (z - x[k]) + 0.25 * (x[k] - x[k - 1]))
        rises.append(f(new)[0] > f(x[k])[0])
        x.append(new)
        tried.append(new)
        best = max(best, new, key=lambda d: f(d)[0])
    best = max(best, 0 * start, key=lambda d: f(d)[0])
    return best, f(best)[0], any(f(d)[2] for d in [*tried, 0 * start])


@pytest.mark.parametrize(
    ("name", "norm", "loss"),
    [
        ("pgd", LINF, losses.cross_entropy),
        ("pgd", L2, losses.dlr),
        ("apgd", LINF, losses.cross_entropy),
        ("apgd", L2, losses.cross_entropy),
        ("apgd", LINF, losses.dlr),
    ],
    ids=["pgd-linf-ce", "pgd-l2-dlr", "apgd-linf-ce", "apgd-l2-ce", "apgd-linf-dlr"],
)
def test_attacks_equal_their_slow_twins(name, norm, loss):
    epsilon = {LINF: 0.15, L2: 0.7}[norm]
    found = run(name, norm, curved, loss)(epsilon)
    starts = jax.jit(perturbations.UNIT.ball(jnp.asarray(IMAGES), epsilon, norm).start)(jax.random.key(3))
    plateaus = 0
    for i, y in enumerate(LABELS):
        image, start = IMAGES[i].ravel(), np.asarray(starts[i]).ravel()
        given = image, y, start, epsilon, norm, loss
        try:
            d, value, fooled = numpy_apgd(*given, 12) if name == "apgd" else numpy_pgd(*given, 8, epsilon / 3)
        except PlateauError:  # DLR is 1 wherever the label's class is the third
            plateaus += 1
            continue
        np.testing.assert_allclose(found.loss[i], value, rtol=1e-9)
        np.testing.assert_allclose(np.ravel(found.perturbation[i]), d, atol=1e-9)
        assert bool(found.fooled[i]) == fooled
    assert plateaus < (len(LABELS) if loss is losses.dlr else 1)


def test_checkpoints_are_the_paper_s():
    assert attacks.checkpoints(100).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert attacks.checkpoints(1).tolist() == [1]


# --- what holds of every attack


@pytest.mark.parametrize(
    ("name", "norm"),
    [("fgsm", LINF), ("fgsm", L2), ("pgd", LINF), ("apgd", LINF), ("apgd", L2)],
    ids=["fgsm-linf", "fgsm-l2", "pgd-linf", "apgd-linf", "apgd-l2"],
)
def test_no_perturbation_leaves_its_ball_or_the_valid_pixels_and_epsilon_compiles_nothing(name, norm):
    found = run(name, norm, curved)
    clean = attempts_on(curved)(jnp.zeros_like(IMAGES))
    for epsilon in (0.0, 0.03, 0.3, 5.0):
        x, loss, fooled = found(epsilon)
        size = np.abs(x) if norm is LINF else np.linalg.norm(np.reshape(x, (B, -1)), axis=1)
        assert np.max(size) <= epsilon + 1e-12
        assert np.min(IMAGES + x) >= 0
        assert np.max(IMAGES + x) <= 1
        if name != "fgsm":  # which has no best of two points
            assert (np.asarray(loss) >= clean.loss).all()
            assert not (clean.fooled & ~fooled).any()
        if epsilon == 0:
            assert not np.any(x)
        np.testing.assert_allclose(loss, attempts_on(curved)(x).loss, rtol=1e-12)
    assert found._cache_size() == 1


def test_more_steps_of_apgd_find_no_smaller_loss():
    ball = perturbations.UNIT.ball(jnp.asarray(IMAGES), 0.3)
    start = ball.start(jax.random.key(0))
    few, many = (jax.jit(lambda n=n: attacks.apgd(attempts_on(curved), ball, start, steps=n).loss)() for n in (2, 20))
    assert (few <= many).all()


def test_images_that_are_normalised_move_by_the_same_pixels():
    mean, std = np.array([0.4, 0.6]), np.array([0.2, 0.3])
    images = RNG.uniform(0, 1, (B, 3, 3, 2))
    pixels, x = Range(-mean / std, (1 - mean) / std), jnp.asarray((images - mean) / std)
    ball, plain = pixels.ball(x, 0.25), perturbations.UNIT.ball(jnp.asarray(images), 0.25)
    np.testing.assert_allclose([ball.low, ball.high], [plain.low, plain.high], atol=1e-12)
    moved = pixels.move(x, ball.start(jax.random.key(0)))
    unit = np.asarray(moved) * std + mean
    assert np.abs(unit - images).max() > 0.2
    assert np.abs(unit - images).max() <= 0.25 + 1e-12
    assert unit.min() >= -1e-12
    assert unit.max() <= 1 + 1e-12
    assert (pixels.move(x, jnp.zeros_like(x)) == x).all(), "no perturbation leaves every bit as it is"
    np.testing.assert_allclose(pixels.to_unit(moved), unit, atol=1e-12)


def test_networks_are_attacked_as_they_are_evaluated_and_get_no_gradient():
    def apply(variables, batch, key, train):
        z = linear(batch["image"]) * variables.params + (100 if train else 0) * jnp.eye(K)[:1]
        return Outputs(z, {}), variables.state

    model, variables = Model(None, apply), Variables(jnp.ones(()), {})
    batch = {"image": jnp.asarray(IMAGES), "label": LABELS}
    loss = lambda out, b: losses.cross_entropy(out.logits, b["label"])  # noqa: E731
    clean = jnp.zeros_like(IMAGES)
    usual = attacks.on_model(model, variables, batch, loss)(clean)
    np.testing.assert_allclose(usual.loss, losses.cross_entropy(linear(IMAGES), LABELS))
    np.testing.assert_array_equal(usual.fooled, linear(IMAGES).argmax(-1) != LABELS)
    assert not attacks.on_model(model, variables, batch, loss, train=True)(clean).fooled[0], "class 0 wins in training"
    total = lambda p: attacks.on_model(model, Variables(p, {}), batch, loss)(clean).loss.sum()  # noqa: E731
    assert jax.grad(total)(jnp.ones(())) == 0


def test_starts_fill_the_ball():
    ball = Range(-9.0, 9.0).ball(jnp.zeros((400, 2, 2, 1)), 0.1, L2)
    sizes = np.linalg.norm(np.reshape(jax.jit(ball.start)(jax.random.key(0)), (400, -1)), axis=1)
    assert 0.08 < np.median(sizes) < 0.09, "half of a ball in 4 dimensions lies within 2^(-1/4) = 0.84 of its radius"
    assert sizes.max() <= 0.1
    noise = np.asarray(jax.jit(ball.noise)(jax.random.key(0)))
    assert 0.0009 < noise.std() < 0.0011


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ball: perturbations.UNIT.ball(IMAGES, -0.1), "epsilon of an attack is -0.1: give one number from 0"),
        (lambda ball: perturbations.UNIT.ball(IMAGES, np.inf), "epsilon of an attack is inf"),
        (lambda ball: perturbations.UNIT.ball(IMAGES.astype(np.uint8), 0.1), "have dtype uint8: give floats"),
        (lambda ball: Range(np.zeros(3), 1.0).ball(IMAGES, 0.1), r"but images have shape \(5, 6, 6, 1\)"),
        (lambda ball: attacks.apgd(None, ball, ball.clean(), steps=0), "an attack has 0 steps"),
        (lambda ball: attacks.pgd(None, ball, ball.clean(), steps=1.5, step_size=1.0), "an attack has 1.5 steps"),
        (lambda ball: attacks.pgd(None, ball, ball.clean(), steps=1, step_size=-1.0), "the step size of an attack"),
    ],
)
def test_bad_numbers_are_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make(perturbations.UNIT.ball(jnp.asarray(IMAGES), 0.1))
