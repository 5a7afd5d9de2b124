"""Terms of detectors: against sums by hand, in one compiled step on networks, and where there is nothing to find."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit

from jaxkd import losses, models, objectives, train
from jaxkd.types import Model, Outputs, Variables

SHAPE, STRIDES, K, J = (16, 32), (8, 16), 2, 4
P = 8 + 2
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.random((3, *SHAPE, 3), np.float32),
    "boxes": np.array(
        [[[2, 2, 12, 14], [20, 4, 28, 12]], [[0, 0, 30, 16], [0, 0, 0, 0]], np.zeros((2, 4))], np.float32
    ),
    "label": np.array([[0, 1], [1, -1], [-1, -1]], np.int32),
    "crowd": np.zeros((3, 2), bool),
}


def outputs(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 10, (3, P, 2))
    found = {
        "found_boxes": np.concatenate([low, low + rng.uniform(2, 9, (3, P, 2))], axis=-1),
        "bins": rng.standard_normal((3, P, 4, J)),
        "centerness": rng.standard_normal((3, P)),
        "neck0": rng.standard_normal((3, 2, 4, 5)),
    }
    return Outputs(
        rng.standard_normal((3, P, K)).astype(np.float32), {n: x.astype(np.float32) for n, x in found.items()}
    )


S, T = outputs(1), outputs(2)


def compiled(term):
    """Value of a term, compiled once for its calls."""
    run = jax.jit(lambda v, s, t, b: term.apply(v, s, t, b, jax.random.key(0), jnp.zeros((), jnp.int32))[0])

    def value(student=S, teacher=T, batch=BATCH, variables=None):
        if variables is None:
            variables = term.init(jax.random.key(0), student, teacher, batch)
        return float(run(variables, student, teacher, batch))

    return value


@pytest.fixture(scope="module")
def by_label():
    return compiled(objectives.labelled_boxes(image_shape=SHAPE, strides=STRIDES))


def test_labelled_boxes_is_the_sum_of_its_losses_over_the_positive_locations(by_label):
    target = jax.jit(lambda b, c: models.assign(b, c, image_shape=SHAPE, strides=STRIDES))(
        BATCH["boxes"], BATCH["label"]
    )
    label, scale = np.asarray(target.label), np.repeat([8.0, 16.0], [8, 2])
    assert [(row >= 0).sum() > 0 for row in label] == [True, True, False]
    answers = (np.eye(K)[np.maximum(label, 0)] * (label >= 0)[..., None]).astype(np.float32)
    position = np.asarray(target.distances / scale[None, :, None].astype(np.float32) + 1)
    f = S.features
    focal, giou, edges, central = map(np.asarray, jax.jit(each_loss)(f, S.logits, answers, target, position))
    total = 0.0
    for n in range(3):
        own = focal[n].sum()
        for i in np.flatnonzero(label[n] >= 0):
            own += giou[n, i] + 0.25 * edges[n, i].mean() + central[n, i]
        total += own / max((label[n] >= 0).sum(), 1) / 3
    assert by_label() == pytest.approx(total, rel=1e-5)


def each_loss(features, logits, answers, target, position):
    return (
        losses.focal(logits, answers),
        losses.giou(features["found_boxes"], target.boxes),
        losses.distribution_focal(features["bins"], position),
        losses.binary_cross_entropy(features["centerness"][..., None], target.centerness[..., None]),
    )


def test_a_crowd_is_not_searched_and_asks_nothing(by_label):
    crowd = BATCH | {"crowd": np.array([[True, False], [True, False], [False, False]])}
    assert by_label(batch=crowd) < by_label() - 0.1


def test_predictions_are_mimicked_where_the_teacher_sees_objects():
    p, q, w = expit(T.logits), expit(S.logits), expit(T.logits).max(-1)
    entropy = -(p * np.log(q) + (1 - p) * np.log(1 - q))
    giou = np.asarray(jax.jit(losses.giou)(S.features["found_boxes"], T.features["found_boxes"]))
    each = (np.abs(p - q) * entropy).sum(-1) + 2 * w * giou
    expected = (each.sum(1) / np.maximum(w.sum(1), 1)).mean()
    value = compiled(objectives.predictions(box_weight=2.0))
    assert value() == pytest.approx(expected, rel=1e-5)
    assert value(T, T) == pytest.approx(0, abs=1e-6)
    assert value(T, S) != pytest.approx(value(), rel=1e-3)


def test_edge_distributions_weigh_locations_by_the_teachers_score():
    w = expit(T.logits).max(-1)
    each = np.asarray(jax.jit(losses.ld)(S.features["bins"], T.features["bins"], temperature=3.0)).mean(-1)
    expected = ((w * each).sum(1) / w.sum(1)).mean()
    assert compiled(objectives.edge_distributions(temperature=3.0))() == pytest.approx(expected, rel=1e-5)


def test_a_neck_is_weighted_by_the_scores_of_its_own_locations():
    term = objectives.score_weighted_neck(0, first=2)
    same = Variables({"kernel": np.eye(5, dtype=np.float32), "bias": np.zeros(5, np.float32)}, {})
    w = expit(T.logits[:, 2:]).max(-1).reshape(3, 2, 4)
    error = np.square(S.features["neck0"] - T.features["neck0"]).mean(-1)
    expected = ((w * error).sum((1, 2)) / w.sum((1, 2))).mean()
    assert compiled(term)(variables=same) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def pair():
    """A student and a teacher, each with its variables, and what the teacher says."""
    made = []
    for seed, width in enumerate((2, 4)):
        model = models.detector(K, width=width, blocks=1, strides=(4,), bins=J)
        made.append((model, models.init(model, jax.random.key(seed), BATCH)))
    model, variables = made[1]
    return *made, jax.jit(lambda v, b: model.apply(v, b, None, False)[0])(variables, BATCH)


@pytest.fixture(scope="module")
def crossed(pair):
    """Term of the teacher's head, its first variables, and its value and gradient in what a student says."""
    _, (_, variables), out = pair
    term = objectives.cross_head(variables.params["head"], strides=(4,))

    def value(student, variables):
        return term.apply(variables, student, out, BATCH, jax.random.key(0), jnp.zeros((), jnp.int32))[0]

    return term.init(jax.random.key(0), out, out, BATCH), jax.jit(jax.value_and_grad(value))


def test_crossed_predictions_of_the_teachers_own_features_are_its_own(pair, crossed):
    _, _, out = pair
    start, value = crossed
    width = out.features["class_tower0"].shape[-1]
    same = {
        side: {"kernel": np.eye(width, dtype=np.float32), "bias": np.zeros(width, np.float32)}
        for side in ("class", "box")
    }
    assert float(value(out, Variables(same, start.state))[0]) == pytest.approx(0, abs=1e-5)
    assert float(value(out, start)[0]) > 1e-3


def test_crossed_predictions_teach_the_first_convolutions_of_a_head_and_nothing_after_them(pair, crossed):
    _, _, out = pair
    start, value = crossed
    gradient = value(out, start)[1]
    assert {name for name, g in gradient.features.items() if np.any(g)} == {"class_tower0", "box_tower0"}
    assert not np.any(gradient.logits)


def test_students_of_other_widths_learn_in_one_step_with_every_term(pair):
    (small, start), (big, teacher), said = pair
    term = objectives.weighted(
        label=objectives.labelled_boxes(image_shape=SHAPE, strides=(4,)),
        predictions=objectives.predictions(),
        cross=objectives.cross_head(teacher.params["head"], strides=(4,)),
        ld=(0.1, objectives.edge_distributions()),
        neck=objectives.score_weighted_neck(0, first=0),
    )
    says = Model(big.init, lambda *_: (said, {}))  # its network need not be compiled once more
    parts = small, says, term, optax.adam(1e-2)
    state = train.init_state(
        *parts, key=jax.random.key(0), batch=BATCH, teacher_variables=teacher, student_variables=start
    )
    step = jax.jit(train.make_train_step(*parts, metrics={}))
    first = None
    for _ in range(6):
        state, metrics = step(state, teacher, BATCH)
        first = metrics if first is None else first
        assert all(np.isfinite(x) for x in jax.tree.leaves(metrics))
    assert metrics["loss"] < first["loss"]
    assert metrics["cross"] != first["cross"]
    head = state.state["term"]["cross"]["head"]
    jax.tree.map(np.testing.assert_array_equal, head, teacher.params["head"])
