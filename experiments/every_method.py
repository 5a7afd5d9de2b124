"""Every method in every pair of the CIFAR-100 benchmark, trained for a few steps on real images.

    python experiments/every_method.py --source npz:cifar100_{split}.npz [--pairs "vgg13 vgg8"] [--methods crd review]

Exits with 1 where a loss is not finite or does not go down. Untrained teachers go by the batch's statistics.
"""

import dataclasses
import functools
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

from jaxkd import data, models, pytorch, starting
from jaxkd.cli import main, parse
from jaxkd.types import Variables


@dataclasses.dataclass(frozen=True)
class Config:
    source: str = "cifar100"  # a TFDS name, a prepared TFDS folder, or npz:PATH
    pairs: tuple[str, ...] = tuple(" ".join(pair) for pair in PAIRS)  # teacher and student, by the benchmark's names
    methods: tuple[str, ...] = tuple(_methods.METHODS)  # by the names of `_methods.py`
    batch_size: int = 16  # images
    steps: int = 8  # updates by Adam
    out: str = "runs/every_method.json"  # where the findings go


SMALL = dict(pairs=("resnet8 resnet8",), methods=("kd", "fsp"), batch_size=4, steps=3)
ADAM = optax.adam(optax.linear_schedule(1e-4, 1e-3, 8))  # whose first updates are large, whatever the gradient


def programs(model, batch):
    """How a student starts and how it is trained, by whatever method."""

    @jax.jit
    def forward(params, state):
        return jax.vjp(lambda p: model.apply(Variables(p, state), batch, jax.random.key(2), True), params, has_aux=True)

    @jax.jit
    def backward(params, opt_state, pull, cotangent):
        updates, opt_state = ADAM.update(*pull(cotangent), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return starting.op_by_op(model.init, jax.random.key(1), batch), forward, backward


def train(term, parts, batch, steps):
    """The loss before each update, and the term's params after the last."""
    taught, started, forward, backward = parts
    params, state, opt_state = *started, ADAM.init(started.params)
    values, shapes = [], jax.eval_shape(lambda: (forward(params, state)[0], taught, batch))
    owned = jax.jit(lambda key: term.init(key, *shapes))(jax.random.key(0))
    own_state = ADAM.init(owned.params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))  # some terms are far larger than the networks
    def derive(owned, own_state, seen, taught, batch, step):
        def loss(own, seen):
            key = jax.random.fold_in(jax.random.key(1), step)
            return term.apply(Variables(own, owned.state), seen, taught, batch, key, step)[:2]

        (value, state), (own, cotangent) = jax.value_and_grad(loss, (0, 1), has_aux=True)(owned.params, seen)
        updates, own_state = ADAM.update(own, own_state, owned.params)
        return value, Variables(optax.apply_updates(owned.params, updates), state), own_state, cotangent

    for step in range(steps, 2 * steps):  # when no weight rises any more
        seen, pull, state = forward(params, state)
        value, owned, own_state, cotangent = derive(owned, own_state, seen, taught, batch, jnp.int32(step))
        params, opt_state = backward(params, opt_state, pull, cotangent)
        values.append(float(value))
    return values, owned.params


def attempt(name, pair, student, parts_for, batch, steps):
    """A row of the table."""
    began, row, method = time.perf_counter(), {"pair": " -> ".join(pair.names), "method": name}, _methods.METHODS[name]
    if not _methods.applies(name, pair):
        return row | {"verdict": "needs the same channels"}
    parts = parts_for(method.around(pair, student))
    pair = pair._replace(begun=method.before and train(method.before(pair), parts, batch, steps)[1])
    values, _ = train(method.make(pair) if method.first else _methods.objective(name, pair), parts, batch, steps)
    verdict = "trains" if np.all(np.isfinite(values)) and values[-1] < values[0] else "FAILS"
    return row | {"first": f"{values[0]:.4g}", "last": f"{values[-1]:.4g}", "verdict": verdict,
                  "seconds": f"{time.perf_counter() - began:.1f}"}  # fmt: skip


def everything() -> None:
    config, rows = parse(Config, description=__doc__, smoke=SMALL), []
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    pairs = {names: _methods.chosen(names, config.methods) for names in (tuple(p.split()) for p in config.pairs)}
    source = data.in_memory(data.open_source(config.source, "train"))
    batch = views(0)[1](data.train_batches(source, config.batch_size, seed=0)[0])
    for names, methods in pairs.items():
        teacher, student = (models.with_head(pytorch.CIFAR100_BENCHMARK[name].make(100)) for name in names)
        known = starting.op_by_op(teacher.init, jax.random.key(0), batch)
        taught = jax.device_get(jax.jit(teacher.apply, static_argnums=3)(known, batch, None, True)[0])
        pair = describe(names, (teacher, student), known, batch, examples=source.size, steps=config.steps,
                        labels=lambda: data.labels_of(source), seen=taught.features)  # fmt: skip
        parts_for = functools.cache(lambda student, taught=taught: (taught, *programs(student, batch)))
        for name in methods:
            rows.append(attempt(name, pair, student, parts_for, batch, config.steps))
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
        out.write_text(json.dumps(rows, indent=2))
    failed = [f"{row['pair']}: {row['method']}" for row in rows if row["verdict"] == "FAILS"]
    print(f"{len(rows)} trainings, {len(failed)} failed", *failed, sep="\n  ")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(everything)
