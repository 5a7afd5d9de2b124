"""Logits of a student and a teacher, and how terms that adapt are started and evaluated on them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import Outputs

B, K = 6, 5
RNG = np.random.default_rng(0)
STUDENT, TEACHER = (Outputs(jnp.asarray(2 * RNG.standard_normal((B, K)), jnp.float32)) for _ in range(2))
BATCH = {"label": jnp.arange(B) % K}
KEY = jax.random.key(0)


def start(term):
    return term.init(KEY, *jax.eval_shape(lambda: (STUDENT, TEACHER, BATCH)))


def evaluate(term, owned, step=0, student=STUDENT):
    return term.apply(owned, student, TEACHER, BATCH, KEY, jnp.int32(step))
