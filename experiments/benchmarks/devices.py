"""The same global batch on one device and on all of them, under `jit` and `pmap`.

On CPUs the devices are eight slices of the same cores, so the figure is the cost of splitting; on accelerators it is
the gain of more devices.

    python experiments/benchmarks/devices.py        about two minutes on two CPU cores
"""

import functools

import _timing as timing
import jax
import numpy as np
import optax

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.experiment import main

SMALL = {"batch_size": 16, "teacher": "mlp", "student": "mlp", "rounds": 1, "seconds": 0.01}


DEPTHS = (8, 14, 20, 32, 44, 56, 110)
NETWORKS = {"mlp": lambda: models.mlp(100)} | {
    f"resnet{depth}": functools.partial(models.resnet, 100, depth=depth, axis_name=parallel.DATA) for depth in DEPTHS
}


def stepper(plan, parts, batch, teacher_variables):
    """Does one step and waits for it."""
    state = train.init_state(*parts, key=jax.random.key(0), batch=batch, teacher_variables=teacher_variables)
    step = plan.compile(train.make_train_step(*parts, axis_name=plan.axis_name))
    box = {"state": plan.put(jax.tree.map(lambda x: x.copy(), state))}
    teacher_variables, placed = plan.put(teacher_variables), plan.place(batch)

    def call():
        box["state"], metrics = step(box["state"], teacher_variables, placed)
        return metrics["loss"].block_until_ready()

    return call


def benchmark() -> None:
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        batch_size=(64, "examples per step, over all devices"),
        teacher=("resnet20", "teacher", NETWORKS),
        student=("resnet8", "student", NETWORKS),
        devices=(8, "devices that a CPU is split into"),
        rounds=(10, "alternating rounds"),
        seconds=(0.5, "least seconds of one side of a round"),
        out=("runs/devices.json", "JSON file for the figures"),
    )
    jax.config.update("jax_num_cpu_devices", config.devices)  # before any back end starts; accelerators ignore it
    everything = jax.devices()
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((config.batch_size, 32, 32, 3)).astype(np.float32),
        "label": rng.integers(0, 100, config.batch_size).astype(np.int32),
    }
    teacher, student = (NETWORKS[name]() for name in (config.teacher, config.student))
    term = objectives.weighted(
        label=(0.1, objectives.from_labels(losses.cross_entropy)),
        kd=(0.9, objectives.from_logits(losses.kd, temperature=4.0)),
    )
    teacher_variables = models.init(teacher, jax.random.key(1), batch)
    plans = {"1 device": parallel.with_jit(parallel.make_mesh(everything[:1]))}
    if len(everything) > 1:
        plans |= {
            f"{len(everything)} devices, jit": parallel.with_jit(),
            f"{len(everything)} devices, pmap": parallel.with_pmap(),
        }
    parts = (student, teacher, term, optax.sgd(0.01, momentum=0.9))
    calls = {name: stepper(plan, parts, batch, teacher_variables) for name, plan in plans.items()}
    seen = {name: [float(call()) for _ in range(3)] for name, call in calls.items()}
    for found in seen.values():  # the same mathematics
        np.testing.assert_allclose(found, seen["1 device"], rtol=2e-2 if timing.is_accelerator() else 1e-3)
    times = timing.alternate(calls, rounds=config.rounds, seconds=config.seconds)
    rows = [
        {
            "where": name,
            "step": timing.spread(t, scale=1e3),
            "rate": round(config.batch_size / np.median(t)),
            "speed": timing.ratio(times["1 device"], t),
            "seconds": t,
        }
        for name, t in times.items()
    ]
    columns = {"where": "where", "step": "ms per step", "rate": "examples/s", "speed": "speed, one device = 1"}
    notes = ["Median (quartiles)."] + (["There is one device, so nothing to compare."] if len(plans) == 1 else [])
    title = f"{config.teacher} -> {config.student}, 32x32 images, global batch {config.batch_size}"
    timing.publish(config.out, title, rows, columns, notes=notes, config=vars(config))


if __name__ == "__main__":
    main(benchmark)
