"""What logging, checkpoints, evaluation hooks, progress and watching cost beside the bare training steps.

Bare: the compiled steps over prefetched batches and nothing else, waited for at the end. Loop: `loop.fit` over the same
batches with a logger (JSON lines and TensorBoard), progress, checkpoints, an evaluation hook, divergence guard and
clock. Both go in alternating rounds of one process. The ratio of a round is loop / bare, where the loop's time is all of
`fit` (the calls that log and save, and the wait for the last save, included) without the seconds inside the evaluation:
evaluating is no training step. The whole ratio has those seconds too. Opening the checkpoints' folder is outside both.

    python experiments/benchmarks/loop_overhead.py        about fifteen minutes on two CPU cores
"""

import contextlib
import dataclasses
import io
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console

from jaxkd import data, losses, metrics, models, objectives, parallel, report, train
from jaxkd.checkpoint import Checkpoints
from jaxkd.cli import check_positive, main, parse
from jaxkd.clock import Clock
from jaxkd.log import Logger, Progress
from jaxkd.loop import Every, evaluate, fit


@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = 12  # alternating rounds
    steps: int = 300  # training steps of one side of a round
    batch_size: int = 64  # examples a step
    size: int = 32  # height and width of the images
    examples: int = 512  # images in the evaluated split
    network: str = "resnet8"  # the student: resnet8 or mlp
    log_every: int = 50  # interval of logged metrics
    checkpoint_every: int = 100  # interval of checkpoints
    evaluate_every: int = 100  # interval of evaluations
    out: str = "runs/loop_overhead.json"  # where the figures go


SMALL = dict(rounds=1, steps=6, batch_size=8, size=8, examples=16, network="mlp", log_every=2, checkpoint_every=2,
             evaluate_every=3)  # fmt: skip
NETWORKS = {"resnet8": lambda: models.resnet(10, depth=8), "mlp": lambda: models.mlp(10, hidden=(64,))}


def contestants(config, folder):
    """Two functions that train for a round and return its seconds: (total, those inside the evaluation)."""
    rng = np.random.default_rng(0)
    count = max(config.examples, 8 * config.batch_size)
    source = data.open_source({"image": rng.integers(0, 256, (count, config.size, config.size, 3), np.uint8),
                               "label": rng.integers(0, 10, count)})  # fmt: skip
    batches = data.train_batches(source, config.batch_size, seed=0)
    plan = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))
    parts = (NETWORKS[config.network](), models.no_teacher(), objectives.from_labels(losses.cross_entropy),
             optax.sgd(0.01, momentum=0.9))  # fmt: skip
    known = models_of_nobody = plan.put(train.Variables({}, {}))
    prepare = {"prepare": lambda batch: {**batch, "image": batch["image"] / 255.0}}
    first = train.init_state(*parts, key=jax.random.key(0), batch=batches[0], teacher_variables=known, **prepare)
    step = plan.compile(train.make_train_step(*parts, metrics={"accuracy": metrics.accuracy}, **prepare))
    measure = plan.compile(train.make_eval_step(*parts[:2], metrics.CLASSIFICATION, **prepare), donate_state=False)
    split = data.eval_batches(data.open_source({"image": np.zeros((1,))}) if False else source, config.batch_size)
    return step, measure, split, first, plan, known, models_of_nobody, batches, folder
