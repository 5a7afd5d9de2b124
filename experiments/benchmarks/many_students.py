"""N students at once, beside one teacher in one program, against N runs of their own.

With T the time of the teacher's forward pass and S that of the rest of a student's step, N runs take N (T + S) a batch,
and N students that share the teacher T + N S at best: the ideal ratio is (T + N S) / (N (T + S)). Both forms of a stack
are measured, batched (vmap) and one after the other (map), alternating with the single step in rounds of one process.

    python experiments/benchmarks/many_students.py        about five minutes on two CPU cores
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from step_overhead import seconds_per_step

from jaxkd import losses, models, objectives, parallel, report, students
from jaxkd.cli import main, parse


@dataclasses.dataclass(frozen=True)
class Config:
    rounds: int = 12  # alternating rounds
    seconds: float = 0.3  # least length of one side of a round
    batch_size: int = 64  # examples a step
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  # N
    pairs: tuple[str, ...] = ("mlp", "convnet", "resnet")  # which teachers and students
    out: str = "runs/many_students.json"  # where the figures go


SMALL = dict(rounds=1, seconds=0.001, batch_size=8, counts=(2,), pairs=("mlp",))
PAIRS = {
    "mlp": ("MLP 3072-1024-1024-10 -> 3072-64-10", models.mlp(10, hidden=(1024, 1024)), models.mlp(10, hidden=(64,))),
    "convnet": ("ResNet-56 -> plain CNN, 16, 32, 64 channels", models.resnet(10, depth=56),
                models.convnet(10, widths=(16, 32, 64))),
    "resnet": ("ResNet-56 -> ResNet-20", models.resnet(10, depth=56), models.resnet(10, depth=20)),
}  # fmt: skip


def contestants(teacher, student, config, mesh):
    """Functions that do one step each and wait for it, by name; `teacher` and `student` are the parts of a step."""
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal((config.batch_size, 32, 32, 3)).astype(np.float32),
             "label": rng.integers(0, 10, config.batch_size).astype(np.int32)}  # fmt: skip
    known = parallel.put_replicated(jax.jit(teacher.init)(jax.random.key(1), batch), mesh)

    def make_parts(temperature, rate):
        term = objectives.weighted(label=(0.1, objectives.from_labels(losses.cross_entropy)),
                                   kd=(0.9, objectives.from_logits(losses.kd, temperature=temperature)))  # fmt: skip
        return student, teacher, term, optax.sgd(rate, momentum=0.9)

    def swept(count):
        points = {"temperature": np.linspace(1, 8, count, dtype=np.float32), "rate": np.full(count, 1e-3, np.float32),
                  "seed": np.arange(count)}  # fmt: skip
        plan = students.sweep(make_parts, points)
        state = plan.init(key=jax.random.key(0), batch=batch, teacher_variables=known)
        return plan.make_step(), parallel.put_replicated(state, mesh)

    def runner(step, state, *inputs):
        compiled = jax.jit(step, donate_argnums=0)
        held = {"state": state}

        def run():
            held["state"], found = compiled(held["state"], *inputs)
            return found["loss"].block_until_ready()

        return run

    placed = parallel.put_batch(batch, mesh)
    step, state = swept(1)
    first = students.pick_student(state, 0)
    share = jax.jit(step.share)
    shared = share(known, placed)
    yield "teacher", lambda: jax.block_until_ready(share(known, placed).teacher.logits)
    yield "student", runner(step.each, jax.tree.map(jnp.copy, first), shared)
    yield "single", runner(step, first, known, placed)
    for count in config.counts:
        step, state = swept(count)
        for name, form in students.FORMS.items():
            yield f"{name} {count}", runner(form(step), jax.tree.map(jnp.copy, state), known, placed)


def measure(pair, config, mesh):
    """Rows of the table for one pair."""
    title, *networks = PAIRS[pair]
    sides = dict(contestants(*networks, config, mesh))
    for run in sides.values():  # compile
        run()
    times = {name: np.empty(config.rounds) for name in sides}
    for number in range(config.rounds):
        order = list(sides) if number % 2 else list(reversed(sides))
        for name in order:
            times[name][number] = seconds_per_step(sides[name], config.seconds)
    T, S, single = (np.median(times[name]) for name in ("teacher", "student", "single"))
    for count in config.counts:
        ideal = (T + count * S) / (count * (T + S))
        row = {"pair": title, "students": count, "teacher_ms": 1e3 * T, "student_ms": 1e3 * S, "ideal": ideal}
        for form in students.FORMS:
            ratio = times[f"{form} {count}"] / (count * times["single"])
            row[form] = [float(q) for q in np.percentile(ratio, [25, 50, 75])]
        row["best_over_ideal"] = min(row[form][1] for form in students.FORMS) / ideal
        yield row | {"single_ms": 1e3 * single}


def shown(row):
    """The row as the table has it."""
    ratios = {form: f"{row[form][1]:.3f} ({row[form][0]:.3f}..{row[form][2]:.3f})" for form in students.FORMS}
    parts = {"parts": f"{row['teacher_ms']:.1f} + {row['student_ms']:.1f}"}
    return {**row, **ratios, **parts, "ideal": f"{row['ideal']:.3f}", "best": f"{row['best_over_ideal']:.2f}"}


def benchmark() -> None:
    config = parse(Config, description=__doc__, smoke=SMALL)
    mesh = parallel.make_mesh(jax.devices()[:1])
    rows = [row for pair in config.pairs for row in measure(pair, config, mesh)]
    device = jax.devices()[0]
    columns = dict(pair="teacher -> student", parts="T + S, ms", students="N", ideal="ideal", vmap="vmap / N runs",
                   map="map / N runs", best="best / ideal")  # fmt: skip
    title = f"batch {config.batch_size} on {device.device_kind} ({device.platform}); ratios: median (quartiles)"
    report.show(report.table([shown(row) for row in rows], columns, title=title))
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    Path(config.out).write_text(json.dumps({"device": device.device_kind, "rows": rows}, indent=2))


if __name__ == "__main__":
    main(benchmark)
