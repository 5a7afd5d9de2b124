"""The objectives that every way of spreading a step over devices and processes is tried with, and the parts around."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import CLASSES, assert_trees_close, copied, make_batch

from jaxkd import losses, metrics, models, objectives, parallel, train

DATA = parallel.DATA
POOLED = {"student": "pooled", "teacher": "pooled"}
TERMS = {
    "per example": objectives.weighted(
        label=(0.5, objectives.from_labels(losses.cross_entropy)),
        kd=objectives.from_logits(losses.kd),
        hint=objectives.from_features(losses.hint, **POOLED, project=objectives.linear()),
    ),
    "couples the batch": objectives.weighted(
        sp=objectives.from_features(losses.sp, **POOLED),
        dist=objectives.from_logits(losses.dist),
        # Batch norm in the term.
        ickd=objectives.from_features(
            losses.ickd, student="stage1", teacher="stage1", project=objectives.connector(), normalize=True
        ),
    ),
    "bank": objectives.weighted(
        crd=(0.02, objectives.crd(**POOLED, examples=16, width=5, negatives=8)),
        queue=objectives.info_nce_queue(**POOLED, size=32, width=5),
    ),
}


def own_rows(batch):
    """The share of a batch that this process reads."""
    share = len(batch["id"]) // jax.process_count()
    start = share * jax.process_index()
    return {name: value[start : start + share] for name, value in batch.items()}


class Parts:
    """A student with batch norm, a wider teacher, a term, and a state before the first step, which may be given."""

    def __init__(self, term, axis_name=DATA, begun=None):
        self.prepare = lambda batch: {**batch, "id": batch["id"] % 16}  # rows of a bank of 16
        self.student = models.convnet(CLASSES, widths=(4,), axis_name=axis_name)
        self.teacher = models.convnet(CLASSES, widths=(8,))
        self.optimizer = optax.sgd(0.05, momentum=0.9)
        self.makers = (self.student, self.teacher, term, self.optimizer)
        self.known, self.state = begun or self._begin()

    def _begin(self):
        known = jax.jit(self.teacher.init)(jax.random.key(9), make_batch())
        options = {"batch": make_batch(), "teacher_variables": known, "prepare": self.prepare}
        return known, train.init_state(*self.makers, key=jax.random.key(0), **options)

    def run(self, plan, steps=3):
        """The last state, and the metrics of each step."""
        step = plan.compile(train.make_train_step(*self.makers, prepare=self.prepare, axis_name=plan.axis_name))
        state, known = plan.put(copied((self.state, self.known)))
        batches = [plan.place(own_rows(make_batch(seed=number))) for number in range(steps)]
        found = []
        with jax.transfer_guard("disallow"):
            for batch in batches:
                state, numbers = step(state, known, batch)
                found.append(numbers)
        return state, found

    def measure(self, plan):
        """Metrics of a batch of which the last rows are padding."""
        chosen = {"accuracy": metrics.accuracy, "kl": metrics.kl_to_teacher}
        step = train.make_eval_step(self.student, self.teacher, chosen, axis_name=plan.axis_name)
        step = plan.compile(step, donate_state=False)
        batch = {**make_batch(), "mask": np.arange(16) < 11}
        return step(*plan.put((self.state, self.known)), plan.place(own_rows(batch)))


@functools.cache
def parts(name):
    """Those of one of the objectives above; a process that was handed its beginning does not compute it again."""
    return Parts(TERMS[name], begun=BEGUN and _received(*BEGUN[name]))


BEGUN = {}


def hand_over(name):
    """The teacher's variables and the state before the first step, for another process."""
    known, state = parts(name).known, parts(name).state
    return jax.device_get((known, state.replace(key=jax.random.key_data(state.key))))


def _received(known, state):
    return jax.tree.map(jnp.asarray, (known, state.replace(key=jax.random.wrap_key_data(state.key))))


@functools.cache
def alone(name):
    """What one device makes of an objective: metrics of each step, params and state."""
    state, found = parts(name).run(parallel.with_jit(parallel.make_mesh(jax.devices()[:1])))
    return jax.device_get((found, state.params, state.state))


def assert_same(many, one):
    """That many devices have come to what one comes to."""
    assert_trees_close(many[0], one[0], rtol=2e-6, atol=1e-6)
    assert_trees_close(many[1], one[1], rtol=0, atol=1e-5)
    assert_trees_close(many[2], one[2], rtol=1e-4, atol=1e-5)


def assert_each_is_another(many, one):
    """That every metric is off by a multiple of what `assert_same` lets pass: for negative controls."""
    for name, value in one.items():
        assert abs(float(many[name]) - float(value)) > 1e-3 * abs(float(value)), name
