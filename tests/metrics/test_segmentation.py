"""Intersection over union equals scikit-learn's on random cases, over batches, with a label to ignore."""

import functools

import jax
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from jaxkd import metrics
from jaxkd.types import Outputs

K = 5
METRIC = metrics.ignoring(metrics.SEGMENTATION, 255)


@functools.partial(jax.jit, static_argnums=0)
def measured(ignoring, logits, batch):
    chosen = METRIC if ignoring else metrics.SEGMENTATION
    return {name: metric(Outputs(logits), Outputs(None), batch) for name, metric in chosen.items()}


def case(seed, absent=()):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (6, 3, 4, K)).astype(np.float32)
    label = (logits + rng.normal(0, 1, logits.shape)).argmax(-1)
    label[np.isin(label, absent)] = 0
    logits[..., list(absent)] -= 50
    label[rng.random(label.shape) < 0.2] = 255
    return logits, label.astype(np.int32)


@pytest.mark.parametrize("absent", [(), (3,)])
def test_iou_and_accuracy_equal_scikit_learns_over_batches(absent):
    logits, label = case(len(absent), absent)
    parts = [measured(True, logits[i : i + 2], {"label": label[i : i + 2]}) for i in (0, 2, 4)]
    found = functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), parts)
    kept = label != 255
    truth, predicted = label[kept], logits.argmax(-1)[kept]
    present = [k for k in range(K) if k not in absent]
    np.testing.assert_array_equal(found["miou"].matrix, confusion_matrix(truth, predicted, labels=range(K)))
    each = jaccard_score(truth, predicted, labels=present, average=None)
    np.testing.assert_allclose(found["miou"].per_class()[present], each, rtol=1e-12)
    assert np.all(np.isnan(found["miou"].per_class()[list(absent)]))
    np.testing.assert_allclose(found["miou"].value(), each.mean(), rtol=1e-12)
    np.testing.assert_allclose(found["miou"].accuracy(), accuracy_score(truth, predicted), rtol=1e-12)
    np.testing.assert_allclose(found["accuracy"].value(), accuracy_score(truth, predicted), rtol=1e-6)


def test_padding_of_a_batch_and_a_label_of_no_class():
    logits, label = case(7)
    padded = measured(True, logits, {"label": label, "mask": np.arange(6) < 4})["miou"]
    whole = measured(True, logits[:4], {"label": label[:4]})["miou"]
    np.testing.assert_array_equal(padded.matrix, whole.matrix)
    wrong = measured(False, logits, {"label": label})["miou"]
    assert int(wrong.outside) == np.sum(label == 255)
    assert np.isnan([wrong.value(), wrong.accuracy(), *wrong.per_class()]).all()
    nothing = metrics.IoU(np.zeros((2, 2), np.int32), np.int32(0))
    assert (nothing.value(), nothing.accuracy()) == (0, 0)


def test_stacked_students_and_values_inside_a_program():
    logits, label = case(8)
    each = [measured(True, one, {"label": label})["miou"] for one in (logits, -logits)]
    both = jax.tree.map(lambda *x: np.stack(x), *each)
    np.testing.assert_allclose(both.value(), [one.value() for one in each], rtol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda x: x.value())(both), both.value(), rtol=1e-6)
