"""Every method in every pair of the CIFAR-100 benchmark, trained for a few steps on real images.

    python experiments/every_method.py --source npz:cifar100_{split}.npz [--pairs "vgg13 vgg8"] [--methods crd review]

Exits with 1 where a loss is not finite or does not go down, that of a phase before included. Untrained teachers go by
the batch's statistics.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")  # hundreds of programs of eight steps each

import _methods
import jax
import numpy as np
from _benchmark import views
from _few_steps import adam, setup, train
from _pair import describe
from _published import PAIRS

from jaxkd import data, models, pytorch
from jaxkd.experiment.cli import main, parse


@dataclasses.dataclass(frozen=True)
class Config:
    source: str = "cifar100"  # a TFDS name, a prepared TFDS folder, or npz:PATH
    pairs: tuple[str, ...] = tuple(" ".join(pair) for pair in PAIRS)  # teacher and student, by the benchmark's names
    methods: tuple[str, ...] = tuple(_methods.METHODS)  # by the names of `_methods.py`
    batch_size: int = 16  # images
    steps: int = 8  # updates by Adam
    out: str = "runs/every_method.json"  # where the findings go


SMALL = dict(pairs=("resnet8 resnet8",), methods=("kd", "fsp"), batch_size=4, steps=3)


def attempt(name, pair, student, setup_for, steps):
    """A row of the table."""
    began, row, method = time.perf_counter(), {"pair": " -> ".join(pair.names), "method": name}, _methods.METHODS[name]
    if not _methods.applies(name, pair):
        return row | {"verdict": "needs the same channels"}
    own, phases = setup_for(method.around(pair, student)), []
    if method.before:
        values, begun = train(method.before(pair), own, steps)
        pair, phases = pair._replace(begun=begun), [values]
    values, _ = train(method.make(pair) if method.first else _methods.objective(name, pair), own, steps)
    trains = all(np.all(np.isfinite(v)) and v[-1] < v[0] for v in [*phases, values])
    return row | {
        "first": f"{values[0]:.4g}",
        "last": f"{values[-1]:.4g}",
        "verdict": "trains" if trains else "FAILS",
        "seconds": f"{time.perf_counter() - began:.1f}",
    }


def everything() -> None:
    config, rows = parse(Config, description=__doc__, smoke=SMALL), []
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    pairs = {names: _methods.chosen(names, config.methods) for names in (tuple(p.split()) for p in config.pairs)}
    source = data.in_memory(data.open_source(config.source, "train"))
    batch = views(0)[1](data.train_batches(source, config.batch_size, seed=0)[0])
    for names, methods in pairs.items():
        teacher, student = (models.with_head(pytorch.CIFAR100_BENCHMARK[name].make(100)) for name in names)
        known = models.init(teacher, jax.random.key(0), batch)
        taught = jax.device_get(jax.jit(teacher.apply, static_argnums=3)(known, batch, None, True)[0])
        pair = describe(
            names,
            (teacher, student),
            known,
            batch,
            examples=source.size,
            steps=config.steps,
            labels=lambda: data.labels_of(source),
            seen=taught.features,
        )
        update = adam(taught.features[pair.teachers[-1]].shape[-1])
        setup_for = functools.cache(functools.partial(setup, batch=batch, taught=taught, update=update))
        for name in methods:
            rows.append(attempt(name, pair, student, setup_for, config.steps))
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
        out.write_text(json.dumps(rows, indent=2))
    failed = [f"{row['pair']}: {row['method']}" for row in rows if row["verdict"] == "FAILS"]
    trained = sum("seconds" in row for row in rows)
    print(f"{trained} trainings, {len(failed)} failed", *failed, sep="\n  ")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(everything)
