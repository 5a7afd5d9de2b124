"""Every method in every pair of the CIFAR-100 benchmark, trained for a few steps on real images.

    python experiments/every_method.py --source npz:cifar100_{split}.npz [--pairs "vgg13 vgg8"] [--methods crd review]

The loss on the batch that is trained on must stay finite and go down; exit code 1 if it does not. Networks are compiled
once a pair, each term by itself: its gradient with respect to the student's outputs is pulled back by a shared program.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import _methods
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _benchmark import PAIRS, views
from _pair import describe

from jaxkd import data, models, pytorch, report, starting
from jaxkd.cli import main, parse
from jaxkd.types import Variables

COLUMNS = {"method": "method", "first": "loss at first", "last": "at last", "verdict": "verdict", "seconds": "s"}


@dataclasses.dataclass(frozen=True)
class Config:
    source: str = "cifar100"  # a TFDS name, a prepared TFDS folder, or npz:PATH
    pairs: tuple[str, ...] = tuple(" ".join(pair) for pair in PAIRS)  # teacher and student, by the benchmark's names
    methods: tuple[str, ...] = tuple(_methods.METHODS)  # by the names of `_methods.py`
    batch_size: int = 32  # images
    steps: int = 8  # updates by Adam
    out: str = "runs/every_method.json"  # where the findings go


SMALL = dict(pairs=("resnet8 resnet8",), methods=("kd", "fsp"), batch_size=4, steps=3)


def networks(names, batch):
    """Teacher and student of a pair with the programs that all methods share."""
    teacher, student = (models.with_head(pytorch.CIFAR100_BENCHMARK[name].make(100)) for name in names)
    known, started = (starting.op_by_op(m.init, jax.random.key(i), batch) for i, m in enumerate((teacher, student)))
    adam = optax.adam(1e-3)

    def forward(params, state, batch):
        return student.apply(Variables(params, state), batch, jax.random.key(2), True)

    @jax.jit
    def backward(params, state, opt_state, batch, cotangent):
        (_, state), pull = jax.vjp(lambda params, state: forward(params, state, batch), params, state)
        (grads, _) = pull((cotangent, jax.tree.map(jnp.zeros_like, state)))
        updates, opt_state = adam.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state

    outputs = jax.jit(lambda known, batch: teacher.apply(known, batch, None, False)[0])(known, batch)
    return (teacher, student), known, started, jax.device_get(outputs), jax.jit(forward), backward, adam


def train(term, parts, batch, steps):
    """The loss before each update, and the term's params after the last."""
    _, _, started, taught, forward, backward, adam = parts
    params, state, opt_state = *started, adam.init(started.params)
    shapes = jax.eval_shape(lambda: (forward(params, state, batch)[0], taught, batch))
    owned = jax.jit(lambda key: term.init(key, *shapes))(jax.random.key(0))
    own_state = adam.init(owned.params)

    @jax.jit
    def derive(owned, own_state, seen, taught, batch, step):
        def loss(own, seen):
            key = jax.random.fold_in(jax.random.key(1), step)
            return term.apply(Variables(own, owned.state), seen, taught, batch, key, step)[:2]

        (value, state), (own, cotangent) = jax.value_and_grad(loss, (0, 1), has_aux=True)(owned.params, seen)
        updates, own_state = adam.update(own, own_state, owned.params)
        return value, Variables(optax.apply_updates(owned.params, updates), state), own_state, cotangent

    values = []
    for step in range(steps, 2 * steps):  # when no weight rises any more
        seen, _ = forward(params, state, batch)
        value, owned, own_state, cotangent = derive(owned, own_state, seen, taught, batch, jnp.int32(step))
        params, state, opt_state = backward(params, state, opt_state, batch, cotangent)
        values.append(float(value))
    return values, owned.params


def attempt(name, pair, parts, batch, steps):
    """A row of the table."""
    began, row, method = time.perf_counter(), {"pair": " -> ".join(pair.names), "method": name}, _methods.METHODS[name]
    if not _methods.applies(name, pair):
        return row | {"verdict": "needs the same channels"}
    pair = pair._replace(begun=method.before and train(method.before(pair), parts, batch, steps)[1])
    values, _ = train(method.make(pair) if method.first else _methods.objective(name, pair), parts, batch, steps)
    verdict = "trains" if np.all(np.isfinite(values)) and values[-1] < values[0] else "FAILS"
    return row | {"first": f"{values[0]:.4g}", "last": f"{values[-1]:.4g}", "verdict": verdict,
                  "seconds": f"{time.perf_counter() - began:.1f}"}  # fmt: skip


def everything() -> None:
    config, rows = parse(Config, description=__doc__, smoke=SMALL), []
    source = data.in_memory(data.open_source(config.source, "train"))
    batch = views(0)[1](data.train_batches(source, config.batch_size, seed=0)[0])
    for names in (tuple(pair.split()) for pair in config.pairs):
        methods, parts = _methods.chosen(names, config.methods), networks(names, batch)
        pair = describe(names, *parts[:2], batch, examples=source.size, steps=config.steps,
                        labels=lambda: data.labels_of(source))  # fmt: skip
        rows += [attempt(name, pair, parts, batch, config.steps) for name in methods]
        report.show(report.table(rows[-len(methods):], COLUMNS, title=" -> ".join(names)))  # fmt: skip
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    Path(config.out).write_text(json.dumps(rows, indent=2))
    failed = [f"{row['pair']}: {row['method']}" for row in rows if row["verdict"] == "FAILS"]
    print(f"{len(rows)} trainings, {len(failed)} failed", *failed, sep="\n  ")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(everything)
