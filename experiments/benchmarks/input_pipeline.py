"""Speed of the input pipeline: a training step fed by it, compared with one fed from batches on the device.

KD from a teacher with cached logits, the case that needs most examples per second; 32x32
images with random crops and flips on the device. Fed from memory: eight batches, or bundles of them, placed beforehand,
again and again. Fed by the pipeline: a shuffled epoch read, put together and placed by the threads of Grain, step by
step; the same in bundles of steps with one dispatch each; and in bundles from a table on the device, for which only row
numbers are read. All take turns in one process; bundles are compared with bundles, since both are the same program.

    python experiments/benchmarks/input_pipeline.py        about eight minutes on two CPU cores
"""

import contextlib
import itertools

import _timing as timing
import jax
import numpy as np
import optax
from _pairs import pictures

from jaxkd import data, losses, models, objectives, parallel, train
from jaxkd.experiment import main
from jaxkd.train import multistep
from jaxkd.types import Variables

SMALL = dict(rounds=1, seconds=0.01, steps=4, bundle=2, batch_size=8, examples=32, students=("mlp",))
STUDENTS = {
    "mlp": ("MLP 3072-64-10", lambda: models.mlp(10, hidden=(64,))),
    "resnet": ("ResNet-20", lambda: models.resnet(10, depth=20)),
}


def contestants(student, config, stack):
    """Name -> a function that takes some steps and waits for the last."""
    arrays, prepare = pictures(config.examples, 10)
    said = np.random.default_rng(1).standard_normal((config.examples, 10)).astype(np.float32)
    source = data.open_source({**arrays, "teacher_logits": said}, num_classes=10)
    plan = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))
    term = objectives.weighted(
        label=(0.1, objectives.from_labels(losses.cross_entropy)),
        kd=(0.9, objectives.from_logits(losses.kd, temperature=4.0)),
    )
    parts = (student, models.cached(), term, optax.sgd(0.01, momentum=0.9))
    nothing, single = Variables({}, {}), train.make_train_step(*parts, prepare=prepare)
    batches = data.train_batches(source, config.batch_size, seed=0)

    def side(step, teacher_variables, stream, dispatches):
        compiled, teacher_variables = plan.compile(step), plan.put(teacher_variables)
        state = train.init_state(
            *parts, key=jax.random.key(0), batch=batches[0], teacher_variables=nothing, prepare=prepare
        )
        box = {"state": plan.put(state)}

        def run():
            for _ in range(dispatches):
                box["state"], found = compiled(box["state"], teacher_variables, next(stream))
            return jax.block_until_ready(found["loss"])

        return run

    def bundled(batches):
        return data.bundles(batches, multistep.spans(0, 10**6, config.bundle))

    def read(batches):
        return stack.enter_context(contextlib.closing(data.prefetch(batches, plan.place)))

    def placed(batches):
        return itertools.cycle([plan.place(batches[i]) for i in range(8)])

    fields, numbers = data.table(source)
    rows = data.train_batches(numbers, config.batch_size, seed=0)
    in_turn = config.steps // config.bundle
    together, looked_up = multistep.scan_steps(single), multistep.from_table(multistep.scan_steps(single))
    return {
        "memory": side(single, nothing, placed(batches), config.steps),
        "pipeline": side(single, nothing, read(batches), config.steps),
        "memory, bundled": side(together, nothing, placed(bundled(batches)), in_turn),
        "pipeline, bundled": side(together, nothing, read(bundled(batches)), in_turn),
        "table, bundled": side(looked_up, (nothing, fields), read(bundled(rows)), in_turn),
    }


def benchmark() -> None:
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        rounds=(20, "alternating rounds"),
        seconds=(1.0, "least seconds of one side of a round"),
        steps=(20, "steps between two readings of the clock, each after the last step has ended"),
        bundle=(10, "steps in a bundle; a divisor of --steps"),
        batch_size=(64, "examples per step"),
        examples=(8192, "examples of the data set"),
        students=(("mlp", "resnet"), "students", STUDENTS),
        out=("runs/benchmarks/input_pipeline.json", "JSON file for the figures"),
    )
    if config.steps % config.bundle:
        raise ValueError(f"--steps is {config.steps} but --bundle {config.bundle}: give a multiple of it.")
    rows = []
    for name in config.students:
        title, make = STUDENTS[name]
        with contextlib.ExitStack() as stack:
            sides = contestants(make(), config, stack)
            for run in sides.values():  # compile
                run()
            times = timing.alternate(sides, rounds=config.rounds, seconds=config.seconds)
        rate = config.steps * config.batch_size
        rows += [
            {
                "student": title,
                "fed": fed,
                "rate": timing.spread(rate / times[fed]),
                "seconds": times[fed],
                "share": timing.ratio(times["memory, bundled" if "bundled" in fed else "memory"], times[fed]),
            }
            for fed in sides
        ]
    columns = dict(student="student", fed="fed from", rate="examples/s", share="of memory's throughput")
    timing.publish(config.out, f"Input, batch {config.batch_size}", rows, columns, config=vars(config))


if __name__ == "__main__":
    main(benchmark)
