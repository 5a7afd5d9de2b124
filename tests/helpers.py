"""Small parts shared by tests: a batch, networks with every kind of state, a step made of them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import losses, models, objectives, train
from jaxkd.keys import plain_words
from jaxkd.types import Outputs

CLASSES = 5


def make_batch(size=16, seed=0):
    """Images [size, 8, 8, 1], integer labels, ids and views."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((size, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
        "id": np.arange(size, dtype=np.int32) + 1000 * seed,
        "view": np.zeros(size, np.int32),
    }


def write_pictures(folder, shape):
    """Pictures of four classes that can be told apart, as files of a split; returns their source."""
    rng = np.random.default_rng(0)
    for split, size in (("train", 160), ("test", 64)):
        label = rng.integers(0, 4, size)
        image = (rng.integers(0, 80, (size, *shape)) + 40 * label[:, None, None, None]).astype(np.uint8)
        np.savez(folder / f"{split}.npz", image=image, label=label)
    return f"npz:{folder}/{{split}}.npz"


class Small(nn.Module):
    """Convolution, batch norm, dropout, head: every kind of variable in a few parameters."""

    width: int = 4

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.width, (3, 3), 2, use_bias=False, name="conv")(x)
        x = features = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        pooled = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(0.3, deterministic=not train)(pooled)
        return Outputs(nn.Dense(CLASSES, name="head")(x), {"stage1": features, "pooled": pooled})


def make_term():
    """Labels, soft labels with a schedule, and a hint with a trained projection."""
    fade = optax.linear_schedule(1.0, 0.2, 20)
    return objectives.weighted(
        label=(0.5, objectives.from_labels(losses.cross_entropy)),
        kd=(fade, objectives.from_logits(losses.kd, temperature=3)),
        hint=(
            2.0,
            objectives.from_features(losses.hint, student="stage1", teacher="stage1", project=objectives.linear()),
        ),
    )


STUDENT, TEACHER, TERM = models.from_linen(Small(4)), models.from_linen(Small(8)), make_term()
OPTIMIZER = optax.sgd(0.05, momentum=0.9)  # Adam would magnify the rounding that comparisons must ignore.


def same(batch):
    """Prepares nothing."""
    return batch


@functools.cache
def teacher_variables():
    """Of the usual teacher."""
    return jax.device_get(jax.jit(TEACHER.init)(jax.random.key(99), make_batch()))


def copied(tree):
    """Copies in buffers of their own, which may be donated; unlike `jnp.copy`, without a program for each shape."""
    return jax.device_put(tree, may_alias=False)


def _begin(student, term, prepare, ema, keys):
    return train.init_state(
        *(student, TEACHER, term, OPTIMIZER),
        key=jax.random.key(0) if keys is None else keys,
        batch=make_batch(),
        teacher_variables=teacher_variables(),
        prepare=prepare,
        ema=ema,
    )


_begun = functools.cache(lambda *parts: _begin(*parts, keys=None))


class Setup:
    """Student, wider teacher, term and optimizer, with a state before the first step."""

    def __init__(self, *, prepare=same, term=TERM, student=STUDENT, keys=None, **options):
        self.student, self.teacher, self.term, self.optimizer = student, TEACHER, term, OPTIMIZER
        self.prepare = prepare
        self._parts, self._keys = (student, term, prepare, options.get("ema_decay") is not None), keys
        self.step = train.make_train_step(student, TEACHER, term, OPTIMIZER, prepare=prepare, **options)

    @functools.cached_property
    def teacher_variables(self):
        return copied(teacher_variables())

    @functools.cached_property
    def state(self):
        """Copied, for steps may overwrite it."""
        if self._keys is not None:
            return _begin(*self._parts, keys=self._keys)
        return copied(_begun(*self._parts))


def shapes(model, image):
    """Shapes of the logits and the features, and the number of parameters, without computing anything."""
    batch = {"image": jax.ShapeDtypeStruct(image, jnp.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    out, state = jax.eval_shape(lambda v, b: model.apply(v, b, jax.random.key(0), True), variables, batch)
    assert state == variables.state
    return out.logits.shape, {n: f.shape for n, f in out.features.items()}, models.count_parameters(variables)


def assert_trees_equal(a, b):
    """Bit for bit, structure included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = (np.asarray(plain_words(leaf)) for leaf in (x, y))
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def assert_trees_close(a, b, **tolerance):
    """Leaf by leaf within a tolerance."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance), a, b)
