"""Static embeddings and the tables that a teacher gives them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.types import Model, Outputs, Variables

V, D = 7, 4
TABLE = np.random.default_rng(0).standard_normal((V, D)).astype(np.float32)
TOKENS = np.array([[1, 2, 6, 0], [3, 0, 0, 0], [0, 0, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)


@pytest.fixture(scope="module")
def static():
    model = models.static_embeddings(vocabulary=V, width=D)
    batch = {"tokens": TOKENS, "token_mask": MASK}
    return model, batch, models.with_embedding(models.init(model, jax.random.key(0), batch), TABLE)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_an_embedding_is_the_mean_of_the_real_tokens_rows_at_length_one(static):
    model, batch, variables = static
    expected = np.stack([unit(TABLE[[1, 2, 6]].mean(0)), unit(TABLE[3]), np.zeros(D)])
    outputs, _ = model.apply(variables, batch, None, False)
    np.testing.assert_allclose(outputs.logits, expected, atol=1e-6)
    np.testing.assert_allclose(outputs.features["pooled"][0], TABLE[[1, 2, 6]].mean(0), atol=1e-6)
    padded = {name: np.pad(x, ((0, 0), (0, 3))) for name, x in batch.items()}
    np.testing.assert_array_equal(model.apply(variables, padded, None, False)[0].logits, outputs.logits)


def test_a_narrowed_table_gives_the_first_columns_at_length_one(static):
    _, batch, variables = static
    model = models.static_embeddings(vocabulary=V, width=2)
    outputs, _ = model.apply(models.narrowed(variables, 2), batch, None, False)
    np.testing.assert_allclose(outputs.logits[1], unit(TABLE[3, :2]), atol=1e-6)
    with pytest.raises(ValueError, match="width is 5, but the table has 4 columns"):
        models.narrowed(variables, 5)


def test_a_principal_basis_has_the_axes_of_the_largest_variance_and_any_centre():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 3)) * (1, 5, 2) + 3
    basis = models.principal_basis(vectors, 2)
    singular = np.linalg.svd(vectors - vectors.mean(0))[2][:2]
    np.testing.assert_allclose(np.abs(np.sum(basis.axes.T * singular, axis=1)), 1, rtol=1e-9)
    assert np.all(basis.axes[np.abs(basis.axes).argmax(0), [0, 1]] > 0)
    np.testing.assert_allclose(models.to_basis(vectors, basis).mean(0), 0, atol=1e-9)
    moved = models.principal_basis(vectors, 2, centre=np.zeros(3))
    np.testing.assert_array_equal(moved.axes, basis.axes)
    np.testing.assert_allclose(models.to_basis(vectors, moved), vectors @ basis.axes)
    whole = models.principal_basis(vectors, 3)  # a rotation, which keeps all distances
    np.testing.assert_allclose(
        np.linalg.norm(models.to_basis(vectors, whole), axis=1), np.linalg.norm(vectors - vectors.mean(0), axis=1)
    )
    for width in (0, 4):
        with pytest.raises(ValueError, match=r"shape \(50, 3\), of which no"):
            models.principal_basis(vectors, width)


def test_frequent_tokens_weigh_less():
    p = np.array([0.5, 1e-3, 0.0])
    np.testing.assert_allclose(models.token_weights(p, a=1e-3), [1e-3 / 0.501, 0.5, 1])
    np.testing.assert_allclose(models.zipf_weights(3), np.log([2, 3, 4]))
    for wrong, a in ((p, 0.0), (-p, 1e-3), (10 * p, 1e-3), (p[None], 1e-3)):
        with pytest.raises(ValueError, match="relative frequencies"):
            models.token_weights(wrong, a=a)


def test_a_teacher_gives_its_embeddings_in_the_basis_of_the_table_too():
    vectors = np.random.default_rng(2).standard_normal((9, 5)).astype(np.float32)
    basis = models.principal_basis(vectors, 3)
    teacher = Model(lambda key, batch: Variables({}, {}), lambda v, batch, key, train: (Outputs(batch["x"], {}), {}))
    outputs, _ = models.in_basis(teacher, basis).apply(Variables({}, {}), {"x": jnp.asarray(vectors)}, None, False)
    np.testing.assert_allclose(outputs.features["in_basis"], models.to_basis(vectors, basis), atol=1e-5)
    np.testing.assert_array_equal(outputs.logits, vectors)
