"""Declarations: they leave the loss as it is, find wrong claims, and read a row of a table from the docstring."""

import inspect
import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, testing
from jaxkd.testing import check_loss, declaration_of, declarations, declare
from jaxkd.testing.draw import Draw, Sizes

MEASURES = [
    lambda draw: draw.logits(),
    lambda draw: draw.vectors(),
    lambda draw: draw.maps(),
    lambda draw: draw.tokens(2),
    lambda draw: draw.token_logits(),
    lambda draw: draw.attention(),
    lambda draw: draw.qkv(),
    lambda draw: draw.mask(),
    lambda draw: draw.labels(),
    lambda draw: draw.top_k()[1],
    lambda draw: draw.boxes(3),
]
LARGE = Sizes(batch=11, classes=40, width=12, rows=8, columns=8, length=9, vocabulary=50, heads=3)


def mse(student, teacher):
    """Mean squared difference.

    Reference:
      Ba, Caruana, "Do Deep Nets Really Need to be Deep?" (the sum), NeurIPS 2014, https://arxiv.org/abs/1312.6184; a
      note, "of something else", 1999, https://example.com
    """
    return losses.hint(student, teacher)


def pair(draw):
    return draw.vectors(), draw.vectors()


def test_a_declared_loss_is_the_function_itself():
    declared = declare(pair, testing.FEATURES)(mse)
    assert declared is mse
    assert list(inspect.signature(declared).parameters) == ["student", "teacher"]
    assert declaration_of(mse).loss is mse
    assert declaration_of(mse).kind == "per example"
    assert declaration_of(mse).takes == ("student", "teacher")
    assert declaration_of(losses.dkd).takes == ("student_logits", "teacher_logits", "labels")
    assert declaration_of(losses.sp).kind == "couples the batch"


def test_a_claim_that_does_not_hold_is_found():
    declare(pair, (testing.SYMMETRIC, testing.SCALE_INVARIANT))(mse)
    report = declaration_of(mse).check()
    assert report.failed == ("scale invariance",)
    assert report.held == ("symmetric",)
    assert declaration_of(mse).check(leave_out=(testing.SCALE_INVARIANT,))


def test_a_loss_without_a_declaration_is_named():
    with pytest.raises(ValueError, match=r"pair has no declaration: put @declare"):
        declaration_of(pair)
    with pytest.raises(ValueError, match=r"kd has no declaration"):
        declaration_of(losses.token_level(losses.kd))  # wears kd's name and attributes
    module = types.SimpleNamespace(__all__=["kd", "pair"], kd=losses.kd, pair=pair)
    with pytest.raises(ValueError, match=r"pair has no declaration"):
        declarations(module)


def test_references_are_read_from_docstrings():
    declare(pair, ())(mse)
    wanted = ("Do Deep Nets Really Need to be Deep?", "NeurIPS 2014", "https://arxiv.org/abs/1312.6184")
    assert declaration_of(mse).reference == wanted
    assert declaration_of(losses.cosine).reference.venue == "NeurIPS 2019 EMC2 workshop"
    no_paper = declaration_of(losses.topk_kl_both_renorm).reference
    assert no_paper.title.startswith("Top-k KL, tail dropped: both sides")
    assert no_paper[1:] == ("2025", "https://github.com/AI-Hypercomputer/maxtext")


@pytest.mark.parametrize("doc", [None, "Mean.", "Mean.\n\nReference:\n  Ba, NeurIPS 2014, https://arxiv.org/abs/1"])
def test_a_reference_that_cannot_be_read_is_named(doc):
    def loss(student, teacher):
        return losses.hint(student, teacher)

    loss.__doc__ = doc
    declare(pair, ())(loss)
    with pytest.raises(ValueError, match=r'docstring of loss has the reference .*"Title", Venue Year, link'):
        _ = declaration_of(loss).reference


def test_arguments_go_by_name_and_those_without_a_batch_axis_are_bound():
    def scaled(student, teacher, weights, *, factor):
        return factor * jnp.mean(weights[None] * jnp.square(student - teacher), axis=-1)

    def fixed(draw):
        return {"weights": abs(draw.normal(draw.sizes.width)), "factor": 3.0}

    declare(pair, (testing.SYMMETRIC, testing.NON_NEGATIVE), fixed=fixed)(scaled)
    call, inputs, given = declaration_of(scaled).example(Draw(LARGE))
    assert list(inputs) == ["student", "teacher"]
    assert call(**inputs, **given).shape == (LARGE.batch,)
    report = declaration_of(scaled).check()
    assert report, str(report)
    assert str(report).startswith("scaled(weights=..., factor=3.0): 2 held")


@pytest.mark.parametrize("measure", MEASURES)
def test_draws_are_repeated_and_follow_the_sizes(measure):
    small, large = measure(Draw()), measure(Draw(LARGE))
    np.testing.assert_array_equal(small, measure(Draw()))
    assert (len(small), len(large)) == (Sizes().batch, LARGE.batch)
    assert small.size < large.size


def test_draws_are_telling():
    draw = Draw()
    mask, labels, (ids, log_p) = draw.mask(), draw.labels(), draw.top_k()
    assert set(mask.sum(1)) == {1, 2, 3, 4}
    assert {0, 6} < set(labels)
    assert len(set(labels)) < len(labels)
    assert 1 not in ids
    assert np.all(np.diff(log_p) <= 0)
    assert np.all(np.exp(log_p).sum(1) < 1)
    boxes, (height, width) = draw.boxes(3), draw.image_shape
    assert np.all(boxes[..., 2:] > boxes[..., :2])
    assert np.all(boxes[..., :2] < (width, height))


def by_layer(student, teacher, weights=(1.0, 1.0)):
    return sum(w * losses.hint(s, t) for w, s, t in zip(weights, student, teacher, strict=True))


def test_a_list_of_arrays_is_an_argument_of_several_layers():
    draw = Draw()
    layers = [draw.maps(), draw.maps()], [draw.maps(), draw.maps()]
    properties = (*testing.FEATURES, *testing.DISTANCE, testing.SYMMETRIC, testing.JOINT_ROTATION_INVARIANT)
    properties = [one for one in properties if one is not testing.JIT]
    assert check_loss(by_layer, layers, properties=properties)
    bug = check_loss(lambda s, t: by_layer(s, t[::-1]), layers, properties=(testing.ZERO_AT_EQUALITY,))
    assert bug.failed == ("zero at equality",)
    with pytest.raises(ValueError, match=r"layers of input 'student' have shapes .*one shape"):
        check_loss(by_layer, ([draw.maps(), draw.maps()[:, 1:]], layers[1]))


def test_classes_are_permuted_on_sides_of_every_width():
    def by_position(student, teacher, student_logits, teacher_logits):
        return losses.hint(student, teacher) + student_logits[:, 0] - teacher_logits[:, 0]

    draw = Draw()
    inputs = (draw.vectors(), draw.vectors(), draw.logits(), draw.logits())
    properties = (testing.CLASS_PERMUTATION_INVARIANT,)
    assert check_loss(by_position, inputs, properties=properties).failed
    assert check_loss(lambda s, t, a, b: losses.hint(s, t) + losses.hint(a, b), inputs, properties=properties)
