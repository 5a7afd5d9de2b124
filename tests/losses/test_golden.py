"""Every method against its authors' numbers: value and gradients in float64, and as good as theirs in float32."""

import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
METHODS = json.loads((GOLDEN / "manifest.json").read_text())["methods"]
CASES = [(method, case) for method, entry in METHODS.items() for case in entry["cases"]]
FIRST = list(dict(reversed(CASES)).items())
EPSILON32 = float(np.finfo(np.float32).eps)

_spec = importlib.util.spec_from_file_location("golden_adapter", GOLDEN / "adapter.py")
adapter = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(adapter)


@functools.cache
def stored(method, case):
    """The case's description and its arrays."""
    with np.load(GOLDEN / METHODS[method]["file"]) as file:
        arrays = {k.split("/", 1)[1]: file[k] for k in file.files if k.startswith(case + "/")}
    return METHODS[method]["cases"][case], arrays


@functools.cache
def ours(method, cases, dtype):
    """Our value and gradients of each case, compiled together, with strict promotion."""
    with jax.enable_x64(dtype == jnp.float64), jax.numpy_dtype_promotion("strict"):
        moving, fixed = {}, {}
        for case in cases:
            description, arrays = stored(method, case)
            inputs = {k: arrays[k] for k in description["inputs"]}
            inputs = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in inputs.items()}
            moving[case] = {k: inputs.pop(k) for k in description["differentiated"]}
            fixed[case] = inputs

        def value(moving, fixed, case):
            return adapter.value(method, stored(method, case)[0]["hyperparameters"], {**fixed, **moving})

        def values_and_gradients(moving, fixed):
            return {case: jax.value_and_grad(value)(moving[case], fixed[case], case) for case in cases}

        # What is static in a method (lengths, boxes' counts) comes from shapes alone, so all of it compiles.
        return jax.tree.map(np.asarray, jax.jit(values_and_gradients)(moving, fixed))


@pytest.mark.parametrize(("method", "case"), CASES, ids=[" ".join(pair) for pair in CASES])
def test_float64_equals_the_authors(method, case):
    description, arrays = stored(method, case)
    value, grads = ours(method, tuple(METHODS[method]["cases"]), jnp.float64)[case]
    np.testing.assert_allclose(value, arrays["value"], rtol=1e-9)
    largest = max(np.abs(arrays[f"grad_{k}"]).max() for k in grads)
    for name, grad in grads.items():
        noise = name in description["zero_gradient_up_to_rounding"]
        scale = largest if noise else np.abs(arrays[f"grad_{name}"]).max()
        np.testing.assert_allclose(grad, arrays[f"grad_{name}"], rtol=0, atol=1e-8 * scale, err_msg=name)


# One case a method: the others differ in hyper-parameters and shapes, which the comparison in float64 sees.
@pytest.mark.parametrize(("method", "case"), FIRST, ids=[" ".join(pair) for pair in FIRST])
def test_float32_is_finite_and_as_good_as_the_authors(method, case):
    description, arrays = stored(method, case)
    value, grads = ours(method, (case,), jnp.float32)[case]
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in grads.values())
    reference = description["reference_in_float32"]
    if not reference.get("finite"):
        return  # theirs is not finite (or was not measured); that ours is has just been shown
    error = abs(value - arrays["value"]) / max(abs(arrays["value"]), 1e-30)
    assert error <= 10 * max(reference["value_rel_diff"], EPSILON32)
    largest = max(np.abs(arrays[f"grad_{k}"]).max() for k in grads)
    worst = max(np.abs(g - arrays[f"grad_{k}"]).max() for k, g in grads.items()) / largest
    assert worst <= 10 * max(reference["grad_max_abs_diff_over_max_abs"], EPSILON32)


def test_adapter_knows_exactly_the_methods_of_the_manifest():
    assert set(adapter.METHODS) == set(METHODS)
    assert len(METHODS) == 70
