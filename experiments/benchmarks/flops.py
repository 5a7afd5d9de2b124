"""Floating-point operations of each part of a distillation run, and the part of the device's peak rate that it reaches.

Operations are counted from the program as written (products and convolutions, and one for each other element), not
from the compiled one, whose count has a column of its own. The peak is that of a large square matrix product of
the same format, measured here. Backward is the whole step without the other parts.

    python experiments/benchmarks/flops.py        about two minutes on two CPU cores
"""

import _costs as costs
import _pairs as pairs
import _timing as timing
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import losses, models, objectives, train
from jaxkd.experiment import main
from jaxkd.models.size import Work, count_work
from jaxkd.types import Outputs, Variables

SMALL = {**pairs.SMALL, "batch_size": 4, "rounds": 1, "seconds": 0.01, "run_steps": 10, "formats": ("float32",)}


def networks(pair, config):
    """(teacher, student, batch)."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 100, config.batch_size).astype(np.int32)
    teacher, student = pairs.networks(pair, config)
    if pair == "resnet":
        image = rng.standard_normal((config.batch_size, 32, 32, 3)).astype(np.float32)
        return teacher, student, {"image": image, "label": label}
    tokens = rng.integers(0, config.vocabulary, (config.batch_size, config.length)).astype(np.int32)
    return teacher, student, {"tokens": tokens, "token_mask": np.ones(tokens.shape, bool), "label": label}


def parts_of(pair, format_, config):
    """Name -> (function, arguments) of the parts of a step."""
    teacher, student, batch = networks(pair, config)
    variables = models.init(teacher, jax.random.key(1), batch)
    if format_ == "bfloat16":
        teacher, student, variables = models.in_dtype(teacher), models.in_dtype(student), models.cast(variables)
    optimizer = optax.sgd(0.01, momentum=0.9)
    term = objectives.weighted(
        label=(0.1, objectives.from_labels(losses.cross_entropy)),
        kd=(0.9, objectives.from_logits(losses.kd, temperature=4.0)),
    )
    parts = (student, teacher, term, optimizer)
    state = train.init_state(*parts, key=jax.random.key(0), batch=batch, teacher_variables=variables)
    batch = jax.device_put(batch)
    own = Variables(state.params["student"], state.state["student"])
    of_teacher = jax.jit(lambda v, b: teacher.apply(v, b, None, False)[0].logits)
    of_student = jax.jit(lambda v, b: student.apply(v, b, jax.random.key(0), True)[0].logits)
    logits = of_student(own, batch), of_teacher(variables, batch)

    def loss(s, t, batch):
        owned = Variables(state.params["term"], state.state["term"])
        return term.apply(owned, Outputs(s), Outputs(t), batch, jax.random.key(0), jnp.int32(0))[0]

    def update(grads, opt_state, params):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    step = jax.jit(train.make_train_step(*parts))
    return {
        "teacher forward": (of_teacher, (variables, batch)),
        "student forward": (of_student, (own, batch)),
        "loss and its gradient": (jax.jit(jax.value_and_grad(loss)), (*logits, batch)),
        "update": (jax.jit(update), (state.params, state.opt_state, state.params)),
        "whole step": (step, (state, variables, batch)),
    }


def measure(pair, format_, peaks, config):
    parts = parts_of(pair, format_, config)
    programs = {name: f.lower(*arguments).compile() for name, (f, arguments) in parts.items()}
    calls = {n: lambda n=n: jax.block_until_ready(programs[n](*parts[n][1])) for n in parts}
    for call in calls.values():
        call()
    times = timing.alternate(calls, rounds=config.rounds, seconds=config.seconds)
    work = {name: count_work(f, *arguments) for name, (f, arguments) in parts.items()}
    whole = work["whole step"]
    rest = (sum(w[i] for n, w in work.items() if n != "whole step") for i in range(len(whole)))
    work["backward"] = Work(*(a - b for a, b in zip(whole, rest, strict=True)))
    rows = []
    for name in ("teacher forward", "student forward", "loss and its gradient", "backward", "update", "whole step"):
        row = {
            "pair": f"{pair}, {format_}",
            "part": name,
            "products": work[name].products / 1e9,
            "elements": work[name].elements / 1e9,
            "share": 100 * work[name].total / whole.total,
        }
        if name in times:
            achieved = work[name].products / np.median(times[name])
            row |= {
                "ms": timing.spread(times[name], scale=1e3),
                "peak": 100 * achieved / peaks[format_],
                "compiler": compiler_count(programs[name]),
                "seconds": times[name],
            }
        rows.append(row)
    return rows, whole.total


def compiler_count(program):
    """The compiler's own count in 1e9, which leaves out what it hands to libraries; None if it gives none."""
    found = program.cost_analysis() or {}
    return found["flops"] / 1e9 if found.get("flops", 0) > 0 else None


def benchmark() -> None:
    fast = timing.is_accelerator()
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        **pairs.sizes(fast),
        formats=(
            ("float32", "bfloat16") if fast else ("float32",),
            "number formats of the computation",
            ("float32", "bfloat16"),
        ),
        batch_size=(512 if fast else 64, "examples per step"),
        run_steps=(100_000, "steps of the run that the report is about"),
        rounds=(20 if fast else 5, "alternating rounds"),
        seconds=(0.3, "least seconds of one part of a round"),
        out=("runs/flops.json", "JSON file for the figures"),
    )
    peaks = costs.peaks(seconds=config.seconds, small=config.rounds == 1)
    rates = ", ".join(f"{peaks[n] / 1e9:,.0f} GFLOP/s in {n}" for n in config.formats)
    rows, notes = [], [f"Median (quartiles); measured peak of products: {rates}."]
    for pair in config.pairs:
        for format_ in config.formats:
            more, whole = measure(pair, format_, peaks, config)
            rows += more
            total = whole * config.run_steps / 1e15
            notes.append(f"A run of {config.run_steps:,} steps, {pair}, {format_}: {total:.4g} PFLOP.")
    columns = {
        "pair": "pair",
        "part": "part",
        "products": "products GFLOP",
        "elements": "elements GFLOP",
        "share": "share %",
        "compiler": "compiler's GFLOP",
        "ms": "ms alone",
        "peak": "% of the peak",
    }
    title = f"Operations of a distillation step, batch {config.batch_size}"
    timing.publish(config.out, title, rows, columns, notes=notes, peaks=peaks, config=vars(config))


if __name__ == "__main__":
    main(benchmark)
