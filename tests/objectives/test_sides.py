"""Terms between sides of other sizes: maps are pooled, last layers are asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives.test_method_terms import MAP, STUDENT, TEACHER, TERMS, B, K, draw, evaluate, start

from jaxkd import losses, objectives
from jaxkd.types import Outputs


def with_heads(*sides):
    """Both sides with last maps and last layers of their own widths."""
    maps = [side.features["stage2"] for side in sides]
    return [Outputs(o.logits, {"last": x}, {"kernel": draw(x.shape[-1], K)}) for o, x in zip(sides, maps, strict=True)]


def test_cat_kd_compares_the_maps_that_the_last_layers_make():
    s, t = with_heads(STUDENT, TEACHER)
    term = objectives.cat_kd(resolution=2)
    owned = start(term, s, t)
    value, _, _ = evaluate(term, owned, s, t)
    maps = [
        np.einsum("bhwc,ck->bhwk", *(np.asarray(x, np.float64) for x in (o.features["last"], o.head["kernel"])))
        for o in (s, t)
    ]
    small = [m.reshape(B, 2, 2, 2, 2, K).mean((2, 4)) for m in maps]
    unit = [m / np.sqrt((m**2).sum((1, 2), keepdims=True)) for m in small]
    np.testing.assert_allclose(value, np.mean((unit[0] - unit[1]) ** 2), rtol=1e-5)
    grads = jax.jit(jax.grad(lambda s: evaluate(term, owned, s, t)[0]))(s)
    assert np.any(np.asarray(grads.head["kernel"]))
    with pytest.raises(ValueError, match=r"the teacher does not tell its last layer: .*models.with_head\(teacher\)"):
        start(term, s, t._replace(head=None))


LARGER = Outputs(
    TEACHER.logits,
    {
        name: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        for name, x in TEACHER.features.items()
        if x.ndim == 4 and name.startswith("stage")
    },
)
POOLING = {
    "hint": objectives.from_features(losses.hint, **MAP, project=objectives.linear(), pool=True),
    "ickd": objectives.from_features(losses.ickd, **MAP, project=objectives.connector(), pool=True),
    **{name: TERMS[name] for name in ("ab", "ofd", "ft", "mgd channels")},
}


@pytest.mark.parametrize("name", POOLING)
def test_a_teachers_larger_map_is_pooled_to_the_students(name):
    """What is repeated and pooled again is what it was."""
    term = POOLING[name]
    owned = start(term, teacher=LARGER)
    for one, other in zip(jax.tree.leaves(owned), jax.tree.leaves(start(term)), strict=True):
        assert one.shape == other.shape
    np.testing.assert_allclose(evaluate(term, owned, teacher=LARGER)[0], evaluate(term, owned)[0], rtol=1e-5)
