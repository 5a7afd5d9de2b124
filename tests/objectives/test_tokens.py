"""Terms of methods for transformers: the authors' numbers, and formulas by hand."""

import jax
import jax.numpy as jnp
import pytest
from losses.test_golden import stored
from objectives.methods import STUDENT, TEACHER, B, evaluate, given, golden, outputs, start

from jaxkd import objectives
from jaxkd.objectives import networks


def test_tinybert_is_the_authors():
    h, x = golden("tinybert", next(c for c in ("case0", "case1") if "proj_kernel" in stored("tinybert", c)[1]))
    S, N = h["layers_s"], h["layers_t"]
    sides = []
    for name, layers in (("student", S), ("teacher", N)):
        attention = {f"a{i}": x[f"{name}_att_{i}"] for i in range(layers)}
        sides.append(outputs(**attention, **{f"h{i}": x[f"{name}_hidden_{i}"] for i in range(layers + 1)}))
    term = objectives.tinybert(
        student_attention=[f"a{i}" for i in range(S)],
        teacher_attention=[f"a{i}" for i in range(N)],
        student_hidden=[f"h{i}" for i in range(S + 1)],
        teacher_hidden=[f"h{i}" for i in range(N + 1)],
    )
    params = {"kernel": x["proj_kernel"], "bias": x["proj_bias"]}
    assert given(term, params, *sides) == pytest.approx(float(x["value"]), rel=1e-5)


def test_vitkd_mimics_two_blocks_and_generates_the_last():
    names = {"student_low": ["block0", "block1"], "teacher_low": ["block0", "block1"]}
    last = {"student_high": "block2", "teacher_high": "block2"}
    mimic = objectives.vitkd(**names, **last, beta=0.0, alpha=0.5)
    # Hiding every token leaves nothing of the student, so that one generated map stands for all of its examples.
    generate = objectives.vitkd(**names, **last, alpha=0.0, beta=1.0, lam=1.0)
    owned = start(mimic)

    @jax.jit
    def expected(p):
        errors = [
            jnp.sum(jnp.square(objectives.linear().apply(a, STUDENT.features[n]) - TEACHER.features[n])) / B
            for a, n in zip(p["align_low"], names["student_low"], strict=True)
        ]
        generate = networks.token_generator().apply
        made = generate(p, jnp.zeros((B, 9, 6)), jnp.ones((B, 9)), p["mask_token"])
        return 0.5 * sum(errors), jnp.sum(jnp.square(made - TEACHER.features["block2"])) / B

    errors, generated = expected(owned.params)
    assert float(evaluate(mimic, owned)[0]) == pytest.approx(float(errors), rel=1e-5)
    found = evaluate(generate, start(generate)._replace(params=owned.params))[0]
    assert float(found) == pytest.approx(float(generated), rel=1e-5)
