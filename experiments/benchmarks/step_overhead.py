"""What the library's step costs beside a hand-written JAX step of the same mathematics.

Both are compiled alike, fed the same batches and timed in alternating rounds of one process; the ratio of a round is
library / hand-written, and the median of the rounds is what counts.

    python experiments/benchmarks/step_overhead.py        about two minutes on two CPU cores
"""

import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import losses, models, objectives, parallel, report, train
from jaxkd.cli import main, parse
from jaxkd.models.mlp import MLP
from jaxkd.models.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = 40  # alternating rounds of each pair
    seconds: float = 0.6  # least length of one side of a round
    batch_size: int = 64  # examples a step
    pairs: tuple[str, ...] = ("mlp", "resnet")  # which teachers and students
    out: str = "runs/step_overhead.json"  # where the figures go


SMALL = dict(rounds=1, seconds=0.01, batch_size=8, pairs=("mlp",))
T, ALPHA = 4.0, 0.1
PAIRS = {
    "mlp": ("MLP 3072-1024-1024-10 -> 3072-64-10", MLP(10, (1024, 1024)), MLP(10, (64,))),
    "resnet": ("ResNet-20 -> ResNet-8, 32x32", ResNet(10, 3), ResNet(10, 1)),
}


def handwritten(teacher, student, optimizer):
    """The step as one would write it without a library."""

    def step(params, stats, opt_state, teacher_variables, batch):
        targets = teacher.apply(teacher_variables, batch["image"], train=False).logits

        def objective(params):
            out, new = student.apply({"params": params, **stats}, batch["image"], train=True, mutable=list(stats))
            label = optax.softmax_cross_entropy_with_integer_labels(out.logits, batch["label"]).mean()
            log_p, log_q = jax.nn.log_softmax(targets / T), jax.nn.log_softmax(out.logits / T)
            kd = T**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1).mean()
            return ALPHA * label + (1 - ALPHA) * kd, new

        (loss, stats), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, loss

    return jax.jit(step, donate_argnums=(0, 1, 2))


def contestants(teacher_module, student_module, config):
    """Two functions that do one step each and wait for it."""
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal((config.batch_size, 32, 32, 3)).astype(np.float32),
             "label": rng.integers(0, 10, config.batch_size).astype(np.int32)}  # fmt: skip
    teacher, student = models.from_linen(teacher_module), models.from_linen(student_module)
    optimizer = optax.sgd(0.01, momentum=0.9)
    mesh = parallel.make_mesh(jax.devices()[:1])
    known = parallel.put_replicated(jax.jit(teacher.init)(jax.random.key(1), batch), mesh)
    term = objectives.weighted(label=(ALPHA, objectives.from_labels(losses.cross_entropy)),
                               kd=(1 - ALPHA, objectives.from_logits(losses.kd, temperature=T)))  # fmt: skip
    parts = (student, teacher, term, optimizer)
    state = train.init_state(*parts, key=jax.random.key(0), batch=batch, teacher_variables=known)
    mine = {"state": parallel.put_replicated(state, mesh)}
    theirs = {"carry": jax.tree.map(jnp.copy, (state.params["student"], state.state["student"],
                                               optimizer.init(state.params["student"])))}  # fmt: skip
    library = parallel.compile_jit(train.make_train_step(*parts), mesh)
    by_hand = handwritten(teacher_module, student_module, optimizer)
    placed = parallel.put_batch(batch, mesh)
    variables = {"params": known.params, **known.state}

    def step_library():
        mine["state"], found = library(mine["state"], known, placed)
        return found["loss"].block_until_ready()

    def step_by_hand():
        *carry, loss = by_hand(*theirs["carry"], variables, placed)
        theirs["carry"] = carry
        return loss.block_until_ready()

    return step_library, step_by_hand


def seconds_per_step(step, least):
    start, count, elapsed = time.perf_counter(), 0, 0.0
    while count == 0 or elapsed < least:
        step()
        count, elapsed = count + 1, time.perf_counter() - start
    return elapsed / count


def benchmark() -> None:
    config = parse(Config, description=__doc__, smoke=SMALL)
    rows = []
    for name, *modules in (PAIRS[pair] for pair in config.pairs):
        library, by_hand = contestants(*modules, config)
        losses_seen = [(float(library()), float(by_hand())) for _ in range(3)]
        np.testing.assert_allclose(*zip(*losses_seen, strict=True), rtol=1e-4)  # the same mathematics
        times = np.empty((config.rounds, 2))
        for number in range(config.rounds):
            for side in (0, 1) if number % 2 else (1, 0):  # neither is always first
                times[number, side] = seconds_per_step((library, by_hand)[side], config.seconds)
        ratio = times[:, 0] / times[:, 1]
        low, middle, high = np.percentile(ratio, [25, 50, 75])
        rows.append({"pair": name, "library": f"{1e3 * np.median(times[:, 0]):.2f}",
                     "hand": f"{1e3 * np.median(times[:, 1]):.2f}", "ratio": f"{middle:.3f} ({low:.3f}..{high:.3f})",
                     "ratio_median": middle})  # fmt: skip
    device = jax.devices()[0]
    columns = dict(pair="pair", library="library ms", hand="hand-written ms", ratio="ratio, median (quartiles)")
    report.show(
        report.table(rows, columns, title=f"batch {config.batch_size} on {device.device_kind} ({device.platform})")
    )
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    Path(config.out).write_text(json.dumps({"device": device.device_kind, "rows": rows}, indent=2))


if __name__ == "__main__":
    main(benchmark)
