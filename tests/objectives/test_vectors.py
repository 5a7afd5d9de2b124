"""Terms of methods on vectors against formulas by hand."""

import jax
import numpy as np
import pytest
from objectives.methods import BATCH, STUDENT, TEACHER, TERMS, evaluate, started

from jaxkd import losses


def test_srd_projects_and_normalises_both_sides():
    owned = started("srd")
    s = np.asarray(STUDENT.features["pooled"], np.float64) @ np.asarray(owned.params["kernel"], np.float64)
    t = np.asarray(TEACHER.features["pooled"], np.float64)
    s, t = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-4) for x in (s, t))
    expected = jax.jit(losses.srd)(s.astype(np.float32), t.astype(np.float32), STUDENT.logits, TEACHER.logits)
    assert float(evaluate(TERMS["srd"], owned)[0]) == pytest.approx(float(expected), rel=1e-5)


def test_uskd_reads_its_weak_logits_from_the_pooled_map():
    owned = started("uskd")
    weak = np.mean(STUDENT.features["stage1"], axis=(1, 2)) @ np.asarray(owned.params["kernel"])
    expected = jax.jit(losses.uskd)(STUDENT.logits, weak, BATCH["label"])
    assert float(evaluate(TERMS["uskd"], owned)[0]) == pytest.approx(float(expected), rel=1e-5)
