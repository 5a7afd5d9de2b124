"""Cost of logging, checkpoints, evaluations, progress and watching, compared with the bare training steps.

Bare: the compiled steps over prefetched batches and nothing else, waited for at the end. Loop: `loop.fit` over the same
batches with a logger (JSON lines and TensorBoard), progress, checkpoints, an evaluation hook, divergence guard and
clock. Both go in alternating rounds of one process. The ratio of a round is loop / bare, where the loop's time is all
of `fit` (the calls that log and save included, and the wait for the last save) without the seconds inside the
evaluation. The second row includes those seconds. Opening the checkpoints' folder is outside both. On a busy machine
the ratio of the processor's seconds, over all threads, is the steadier figure.

    python experiments/benchmarks/loop_overhead.py        about nine minutes on two CPU cores
"""

import dataclasses
import io
import tempfile
import time
from pathlib import Path
from typing import Literal

import _timing as timing
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console

from jaxkd import data, losses, metrics, models, objectives, parallel, train
from jaxkd.experiment import DATA, NETWORKS, RUN, TRAINING, check_domains, domains, flag, main, parse
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.runs.logger import Logger
from jaxkd.runs.loop import Every, evaluate, fit
from jaxkd.runs.progress import Progress
from jaxkd.runs.timing import Clock
from jaxkd.types import Variables


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = flag(32, "height and width of the images, in pixels", DATA, domains.SIDE)
    examples: int = flag(512, "images of the evaluated split", DATA, domains.COUNT)
    network: Literal["resnet8", "mlp"] = flag("resnet8", "network of the student", NETWORKS)
    steps: int = flag(100, "updates of one side of a round", TRAINING, domains.COUNT)
    batch_size: int = flag(64, "examples per step", TRAINING, domains.COUNT)
    log_every: int = flag(50, "updates between two logged lines", TRAINING, domains.COUNT)
    checkpoint_every: int = flag(100, "updates between two checkpoints", TRAINING, domains.COUNT)
    evaluate_every: int = flag(100, "updates between two evaluations", TRAINING, domains.COUNT)
    rounds: int = flag(
        14, "alternating rounds; short ones, since a machine's speed drifts over minutes", RUN, domains.COUNT
    )
    out: str = flag("runs/loop_overhead.json", "JSON file for the figures", RUN)


SMALL = dict(
    rounds=1,
    steps=6,
    batch_size=8,
    size=8,
    examples=16,
    network="mlp",
    log_every=2,
    checkpoint_every=2,
    evaluate_every=3,
)
NETWORKS = {"resnet8": lambda: models.resnet(10, depth=8), "mlp": lambda: models.mlp(10, hidden=(64,))}


def now():
    """Seconds on the wall, and seconds that all threads of this process have had of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def random_images(config):
    """Training batches and evaluation batches of random images."""
    rng = np.random.default_rng(0)

    def images(count):
        pixels = rng.integers(0, 256, (count, config.size, config.size, 3), np.uint8)
        return data.open_source({"image": pixels, "label": rng.integers(0, 10, count)}, num_classes=10)

    batches = data.train_batches(images(8 * config.batch_size), config.batch_size, seed=0)
    return batches, data.eval_batches(images(config.examples), config.batch_size)


def contestants(config):
    """Two functions that train for a round and return its seconds (as in `now`): in all, and inside the evaluation."""
    batches, split = random_images(config)
    plan = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))
    no_variables = plan.put(Variables({}, {}))
    prepare = {"prepare": lambda batch: {**batch, "image": batch["image"] / 255}}
    networks, label = (NETWORKS[config.network](), models.no_teacher()), objectives.from_labels(losses.cross_entropy)
    parts = (*networks, label, optax.sgd(0.01, momentum=0.9))
    first = train.init_state(*parts, key=jax.random.key(0), batch=batches[0], teacher_variables=no_variables, **prepare)
    step = plan.compile(train.make_train_step(*parts, metrics={"accuracy": metrics.accuracy}, **prepare))
    measure = plan.compile(train.make_eval_step(*parts[:2], metrics.CLASSIFICATION, **prepare), donate_state=False)

    def bare(folder):
        state = plan.put(jax.tree.map(jnp.copy, first))  # a copy, since the step donates it
        start = now()
        for batch in data.prefetch(batches, plan.place, stop=config.steps):
            state, _ = step(state, no_variables, batch)
        jax.block_until_ready(state)
        return now() - start, np.zeros(2)

    def loop(folder):
        state, evaluating, clock = plan.put(jax.tree.map(jnp.copy, first)), [], Clock(config.batch_size)

        def hook(state):
            jax.block_until_ready(state)  # the steps before are no part of the evaluation
            start = now()
            found = metrics.values(evaluate(measure, state, no_variables, data.prefetch(split, plan.place)))
            evaluating.append(now() - start)
            return found

        def stream(begin, end):
            return data.prefetch(batches, plan.place, start=begin, stop=end, measure=clock.measure)

        checkpoints, console = Checkpoints(folder / "checkpoints"), rich.console.Console(file=io.StringIO())
        with Logger(folder) as logger, Progress("", config.steps, batch_size=config.batch_size, console=console) as bar:
            options = dict(log=logger.phase("student", bar), log_every=config.log_every, clock=clock)
            options |= dict(hooks=[Every(config.evaluate_every, "validation", hook)], checkpoints=checkpoints)
            options["checkpoint_every"] = config.checkpoint_every
            start = now()
            fit(step, state, no_variables, stream, steps=config.steps, **options)
            elapsed = now() - start
        checkpoints.close()
        return elapsed, sum(evaluating)

    return bare, loop


def benchmark() -> None:
    config = parse(Config, description=__doc__, smoke=SMALL)
    check_domains(config)
    sides = contestants(config)
    seconds = np.empty((config.rounds + 1, 2, 2, 2))  # the first round compiles and is left out
    for number in range(config.rounds + 1):
        for side in (0, 1) if number % 2 else (1, 0):  # neither is always first
            with tempfile.TemporaryDirectory() as folder:
                seconds[number, side] = sides[side](Path(folder))
    (bare, _), (whole, evaluating) = seconds[1:].transpose(1, 2, 3, 0)
    rows = []
    for name, loop in (("without the evaluations", whole - evaluating), ("with the evaluations", whole)):
        rows.append(
            {
                "loop": name,
                "bare_ms": timing.spread(bare[0], scale=1e3 / config.steps),
                "loop_ms": timing.spread(loop[0], scale=1e3 / config.steps),
                "ratio": timing.ratio(loop[0], bare[0]),
                "cpu": timing.ratio(loop[1], bare[1]),
            }
        )
    columns = dict(
        loop="loop.fit",
        bare_ms="bare ms per step",
        loop_ms="loop ms per step",
        ratio="loop / bare, median (quartiles)",
        cpu="the same in processor time",
    )
    title = (
        f"{config.network}, batch {config.batch_size}, {config.size}x{config.size}, {config.rounds} rounds of "
        f"{config.steps} steps"
    )
    timing.publish(
        config.out,
        title,
        rows,
        columns,
        config=dataclasses.asdict(config),
        bare=bare,
        loop=whole,
        evaluating=evaluating,
    )


if __name__ == "__main__":
    main(benchmark)
