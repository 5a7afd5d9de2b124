"""Terms with parameters or memories of their own between two small sides, for the tests of each kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from losses.test_golden import stored

from jaxkd import losses, objectives
from jaxkd.types import Outputs

B, K, N = 8, 5, 32
RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def side(width):
    """Two maps, an embedding, tokens and logits, all functions of a few numbers that can be trained."""
    features = {
        "stage1": draw(B, 8, 8, width),
        "stage2": draw(B, 4, 4, 2 * width),
        "pooled": draw(B, 2 * width),
        **{f"block{i}": draw(B, 9, width) for i in range(3)},
        **{f"attention{i}": draw(B, 2, 9, 9) for i in range(2)},
    }
    return Outputs(draw(B, K), features)


STUDENT, TEACHER = side(4), side(6)
BATCH = {
    "label": jnp.arange(B) % K,
    "id": jnp.arange(B) * 4,
    "classes": jnp.arange(B * 64).reshape(B, 8, 8) // 21 % 4,  # 3 is no class
    "boxes": jnp.asarray([[[2.0, 2.0, 20.0, 20.0], [8.0, 0.0, 30.0, 9.0]]] * B),
}
CLASSIFIER = (draw(12, K), draw(K))
NORMS = [(draw(6), draw(6)), (draw(12), draw(12))]
LAYERS = {"students": ["stage1", "stage2"], "teachers": ["stage1", "stage2"]}
MAP = {"student": "stage1", "teacher": "stage1"}
PARAPHRASER = {
    "kernels": [0.2 * draw(3, 3, 6, 6), 0.2 * draw(3, 3, 6, 3), 0.2 * draw(3, 3, 3, 3)],
    "biases": [jnp.zeros(6), jnp.zeros(3), jnp.zeros(3)],
}
TERMS = {
    "vid": objectives.vid(**MAP),
    "ab": objectives.ab(**LAYERS),
    "ofd": objectives.ofd(**LAYERS, norms=NORMS),
    "paraphrase": objectives.paraphrase(teacher="stage1"),
    "ft": objectives.ft(**MAP, paraphraser=PARAPHRASER),
    "mgd channels": objectives.mgd(**MAP, alpha=1e-3),
    "mgd positions": objectives.mgd(**MAP, hidden=0.5, over="positions", alpha=1e-3),
    "vitkd": objectives.vitkd(
        student_low=["block0", "block1"], teacher_low=["block0", "block1"], student_high="block2", teacher_high="block2"
    ),
    "uskd": objectives.uskd(feature="stage1"),
    "srd": objectives.srd(student="pooled", teacher="pooled"),
    "tinybert": objectives.tinybert(
        student_attention=["attention0"],
        teacher_attention=["attention0", "attention1"],
        student_hidden=["block0", "block1"],
        teacher_hidden=["block0", "block1", "block2"],
    ),
    "srrl": objectives.srrl(student="stage2", teacher="stage2", classifier=CLASSIFIER),
    "fgd": objectives.fgd(**MAP, image_shape=(32, 32)),
    "semckd": objectives.semckd(**LAYERS),
    "review": objectives.review(**LAYERS),
    "crd": objectives.crd(student="pooled", teacher="pooled", examples=N, width=5, negatives=16),
    "info_nce_queue": objectives.info_nce_queue(student="pooled", teacher="pooled", size=16, width=5),
    "queue_similarity": objectives.queue_similarity(student="pooled", teacher="pooled", size=16),
    "cirkd_memory": objectives.cirkd_memory(
        **MAP, num_classes=3, label="classes", pixels=16, regions=8, drawn_pixels=8, drawn_regions=4, each=4
    ),
    "info_nce": objectives.from_features(
        losses.info_nce,
        student="pooled",
        teacher="pooled",
        project=objectives.linear(width=5),
        project_teacher=objectives.mlp(hidden=(7,), width=5),
    ),
    "hint with a perceptron": objectives.from_features(losses.hint, **MAP, project=objectives.mlp(hidden=(7,))),
    "ickd": objectives.from_features(losses.ickd, **MAP, project=objectives.connector()),
    "fitnet": objectives.from_features(losses.hint, **MAP, project=objectives.regressor()),
    "fitnet, halved": objectives.from_features(
        losses.hint, student="stage1", teacher="stage2", project=objectives.regressor(halve=True, norm=True)
    ),
    "ctkd": objectives.curriculum_temperature(strength=1.0),
    "ctkd of instances": objectives.curriculum_temperature(strength=1.0, instance=True, hidden=8),
}


def start(term, student=STUDENT, teacher=TEACHER, batch=BATCH):
    shapes = jax.eval_shape(lambda: (student, teacher, batch))
    return jax.jit(lambda key: term.init(key, *shapes))(jax.random.key(0))


@functools.cache
def started(name):
    """What one of the terms above owns before the first step."""
    return start(TERMS[name])


def evaluate(term, owned, student=STUDENT, teacher=TEACHER, batch=BATCH, step=0):
    return jax.jit(term.apply)(owned, student, teacher, batch, jax.random.key(1), jnp.int32(step))


def golden(method, case="case0"):
    description, arrays = stored(method, case)
    arrays = {k: jnp.asarray(v, jnp.float32 if v.dtype.kind == "f" else None) for k, v in arrays.items()}
    return description["hyperparameters"], arrays


def outputs(logits=None, **features):
    return Outputs(jnp.zeros((1, K)) if logits is None else logits, features)


def value_of(term, params, student, teacher, batch, alike=lambda own: None):
    """The term's value with other parameters in the places of its own, which `alike` may look at."""
    shapes = jax.eval_shape(lambda: (student, teacher, batch))

    @jax.jit
    def value(params, *inputs):
        owned = term.init(jax.random.key(0), *shapes)
        alike(owned.params)
        return term.apply(owned._replace(params=params), *inputs, jax.random.key(1), jnp.int32(0))[0]

    return float(value(params, student, teacher, batch))


def given(term, params, student, teacher, batch=None):
    """The term's value with the authors' parameters, which have the shapes of its own."""

    def alike(own):
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)

    return value_of(term, params, student, teacher, batch or {}, alike)
