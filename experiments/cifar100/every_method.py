"""Every method in every pair of the CIFAR-100 benchmark, trained for a few steps on real images.

    python experiments/cifar100/every_method.py --source npz:cifar100_{split}.npz [--pairs "vgg13 vgg8"] [--methods crd]

Exits with 1 where a loss is not finite or does not fall, that of a pre-training phase included. Teachers are untrained
and normalise by the batch's statistics.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")  # hundreds of programs of eight steps each

import jax
import numpy as np
from published import PAIRS
from recipe import views

from jaxkd import data, models
from jaxkd.experiment import (
    DATA,
    NETWORKS,
    RUN,
    TRAINING,
    check_choice,
    check_domains,
    domains,
    few_steps,
    flag,
    main,
    methods,
    parse,
)
from jaxkd.experiment.images import check_images, check_network
from jaxkd.experiment.networks import SMALL_IMAGES, make_network
from jaxkd.files import explain_write_errors, prepare_file


@dataclasses.dataclass(frozen=True)
class Config:
    source: str = flag(
        "cifar100",
        "data set: a TFDS name, npz:PATH ({split} in it if each split has its own file), or a prepared folder",
        DATA,
    )
    pairs: tuple[str, ...] = flag(tuple(map(" ".join, PAIRS)), 'teachers and students, as "vgg13 vgg8"', NETWORKS)
    methods: tuple[str, ...] = flag(tuple(methods.METHODS), "names of the methods", TRAINING)
    batch_size: int = flag(16, "images of the batch", TRAINING, domains.COUNT)
    steps: int = flag(8, "updates by Adam", TRAINING, domains.COUNT)
    out: str = flag("runs/every_method.json", "JSON file for the findings", RUN)

    def named(self):
        """The pairs, as (teacher, student); an error for unknown names."""
        check_domains(self)
        check_choice(self, "methods", "method", methods.METHODS)
        pairs = [tuple(words.split()) for words in self.pairs]
        for pair in pairs:
            if len(pair) != 2 or not {*pair} <= {*SMALL_IMAGES}:
                raise ValueError(f"--pairs has {' '.join(pair)!r}: name two of {', '.join(SMALL_IMAGES)}.")
        return pairs


SMALL = dict(pairs=("resnet8 resnet8",), methods=("kd", "fsp"), batch_size=4, steps=3)


def attempt(name, pair, student, teacher_out, batch, setup_for, steps):
    """A row of the table: the losses of a method before its first and its last update."""
    row, began, method = {"pair": " -> ".join(pair.names), "method": name}, time.perf_counter(), methods.METHODS[name]
    if reason := methods.misfit(name, pair, student, teacher_out, batch):
        return row | {"verdict": reason}
    setup, phases = setup_for(method.wrap(pair, student)), []
    if method.pretrain:
        values, trained = few_steps.train(method.pretrain(pair), setup, steps)
        pair, phases = pair._replace(pretrained=trained), [values]
    term = method.make(pair) if method.term_first else methods.objective(name, pair)
    values, _ = few_steps.train(term, setup, steps)
    trains = all(np.all(np.isfinite(v)) and v[-1] < v[0] for v in [*phases, values])
    return row | {
        "first": f"{values[0]:.4g}",
        "last": f"{values[-1]:.4g}",
        "verdict": "trains" if trains else "FAILS",
        "seconds": f"{time.perf_counter() - began:.1f}",
    }


def everything() -> None:
    config, rows = parse(Config, description=__doc__, smoke=SMALL), []
    pairs, out = config.named(), Path(config.out)
    prepare_file(out)
    source = data.in_memory(data.open_source(config.source, "train"))
    check_images(config, source)
    batch = views(source, 0)[1](data.train_batches(source, config.batch_size, seed=0)[0])
    for names in pairs:
        teacher, student = (make_network(name, source.num_classes) for name in names)
        for name, network in zip(names, (teacher, student), strict=True):
            check_network("--pairs", name, network, batch)
        variables = models.init(teacher, jax.random.key(0), batch)
        teacher_out = jax.device_get(jax.jit(teacher.apply, static_argnums=3)(variables, batch, None, True)[0])
        given = dict(teacher_features=teacher_out.features, labels=lambda: data.labels_of(source))
        pair = methods.describe(
            names, teacher, student, variables, batch, examples=source.size, steps=config.steps, **given
        )
        optimizer = few_steps.adam(teacher_out.features[(pair.teacher_stages or ["pooled"])[-1]].shape[-1])
        given = dict(batch=batch, teacher_out=teacher_out, optimizer=optimizer)
        setup_for = functools.cache(functools.partial(few_steps.setup, **given))
        for name in config.methods:
            rows.append(attempt(name, pair, student, teacher_out, batch, setup_for, config.steps))
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
        with explain_write_errors(out):
            out.write_text(json.dumps(rows, indent=2))
    failed = [f"{row['pair']}: {row['method']}" for row in rows if row["verdict"] == "FAILS"]
    trained = sum("seconds" in row for row in rows)
    print(f"{trained} trainings, {len(rows) - trained} that do not apply, {len(failed)} failed", *failed, sep="\n  ")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(everything)
