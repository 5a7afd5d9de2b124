"""N students together, with one teacher in one program, compared with N separate runs.

With T the time of the teacher's forward pass and S that of the rest of a student's step, N runs take N (T + S) a batch,
and N students that share the teacher T + N S at best: the ideal ratio is (T + N S) / (N (T + S)). The forms of
a stack are measured, batched (vmap), in a loop (map) and side by side (unroll), alternating with the single step in
rounds of one process.

    python experiments/benchmarks/many_students.py        about five minutes on two CPU cores
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import alternate, flags, publish, spread

from jaxkd import losses, models, objectives, parallel
from jaxkd.experiment import main
from jaxkd.train import students

SMALL = dict(rounds=1, seconds=0.001, batch_size=8, counts=(2,), pairs=("mlp",))
PAIRS = {
    "mlp": ("MLP 3072-1024-1024-10 -> 3072-64-10", models.mlp(10, hidden=(1024, 1024)), models.mlp(10, hidden=(64,))),
    "convnet": (
        "ResNet-56 -> plain CNN, 16, 32, 64 channels",
        models.resnet(10, depth=56),
        models.convnet(10, widths=(16, 32, 64)),
    ),
    "resnet": ("ResNet-56 -> ResNet-20", models.resnet(10, depth=56), models.resnet(10, depth=20)),
}


def contestants(teacher, student, config, mesh):
    """Functions that do one step each and wait for it, by name; `teacher` and `student` are the parts of a step."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((config.batch_size, 32, 32, 3)).astype(np.float32),
        "label": rng.integers(0, 10, config.batch_size).astype(np.int32),
    }
    teacher_variables = parallel.put_replicated(models.init(teacher, jax.random.key(1), batch), mesh)

    def make_parts(temperature, rate):
        term = objectives.weighted(
            label=(0.1, objectives.from_labels(losses.cross_entropy)),
            kd=(0.9, objectives.from_logits(losses.kd, temperature=temperature)),
        )
        return student, teacher, term, optax.sgd(rate, momentum=0.9)

    def swept(count):
        points = {
            "temperature": np.linspace(1, 8, count, dtype=np.float32),
            "rate": np.full(count, 1e-3, np.float32),
            "seed": np.arange(count),
        }
        plan = students.sweep(make_parts, points)
        state = plan.init(key=jax.random.key(0), batch=batch, teacher_variables=teacher_variables)
        return plan.make_step(), parallel.put_replicated(state, mesh)

    def runner(step, state, *inputs):
        compiled = jax.jit(step, donate_argnums=0)
        box = {"state": state}

        def run():
            box["state"], found = compiled(box["state"], *inputs)
            return found["loss"].block_until_ready()

        return run

    placed = parallel.put_batch(batch, mesh)
    step, state = swept(1)
    first = students.pick_student(state, 0)
    make_inputs = jax.jit(step.inputs)
    inputs = make_inputs(teacher_variables, placed)
    yield "teacher", lambda: jax.block_until_ready(make_inputs(teacher_variables, placed).teacher_out.logits)
    yield "student", runner(step.update, jax.tree.map(jnp.copy, first), inputs)
    yield "single", runner(step, first, teacher_variables, placed)
    for count in config.counts:
        step, state = swept(count)
        for name in config.forms:
            yield (
                f"{name} {count}",
                runner(students.FORMS[name](step), jax.tree.map(jnp.copy, state), teacher_variables, placed),
            )


def measure(pair, config, mesh):
    """Rows of the table for one pair."""
    title, *networks = PAIRS[pair]
    sides = dict(contestants(*networks, config, mesh))
    for run in sides.values():  # compile
        run()
    times = alternate(sides, rounds=config.rounds, seconds=config.seconds)
    T, S, single = (np.median(times[name]) for name in ("teacher", "student", "single"))
    for count in config.counts:
        row = {"pair": title, "students": count, "teacher_ms": 1e3 * T, "student_ms": 1e3 * S}
        ratios = {f"{form}_ratios": times[f"{form} {count}"] / (count * times["single"]) for form in config.forms}
        yield row | ratios | {"ideal_ratio": (T + count * S) / (count * (T + S)), "single_ms": 1e3 * single}


def shown(row):
    """The row as the table has it."""
    ratios = {form: row[f"{form}_ratios"] for form in students.FORMS if f"{form}_ratios" in row}
    parts = f"{row['teacher_ms']:.1f} + {row['student_ms']:.1f}"
    best = min(np.median(ratio) for ratio in ratios.values()) / row["ideal_ratio"]
    shares = {form: spread(ratio) for form, ratio in ratios.items()}
    return {**row, **shares, "parts": parts, "ideal": f"{row['ideal_ratio']:.3f}", "best": f"{best:.2f}"}


def benchmark():
    config = flags(
        __doc__,
        smoke=SMALL,
        rounds=(12, "alternating rounds"),
        seconds=(0.3, "least seconds of one side of a round"),
        batch_size=(64, "examples per step"),
        counts=((1, 2, 4, 8, 16, 32), "numbers of students"),
        pairs=(("mlp", "convnet", "resnet"), "teachers and students", PAIRS),
        forms=(tuple(students.FORMS), "forms of a stack", students.FORMS),
        out=("runs/benchmarks/many_students.json", "JSON file for the figures"),
    )
    mesh = parallel.make_mesh(jax.devices()[:1])
    rows = [shown(row) for pair in config.pairs for row in measure(pair, config, mesh)]
    columns = dict(
        pair="teacher -> student",
        parts="T + S, ms",
        students="N",
        ideal="ideal",
        vmap="vmap / N runs",
        map="map / N runs",
        unroll="unroll / N runs",
        best="best / ideal",
    )
    publish(config.out, f"N students with one teacher, batch {config.batch_size}", rows, columns)


if __name__ == "__main__":
    main(benchmark)
