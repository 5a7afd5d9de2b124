"""Training speed with a cached teacher compared with a live one, and the speed of writing the cache.

ResNet-56 -> ResNet-20 at 32x32 with random crops and flips, KD with T = 4 and cross-entropy, SGD with momentum. All
students take their batches from Grain's threads; those with a cache find the teacher's targets in them, on disk under
the key (example, view). They take turns in one process, so the ratio of a round compares neighbours in time.

    python experiments/benchmarks/cached_teacher.py        about five minutes on two CPU cores
"""

import contextlib
import dataclasses
import tempfile

import _timing as timing
import jax
import numpy as np
import optax
from _pairs import pictures

from jaxkd import cache, data, losses, models, objectives, parallel, train
from jaxkd.cache.write import write_targets
from jaxkd.experiment import main
from jaxkd.types import Variables

SMALL = dict(rounds=1, seconds=0.01, steps=2, batch_size=8, pair="mlp", examples=32, classes=10, top_k=4)
T, ALPHA = 4.0, 0.1
# (network, its name) of the teacher and of the student.
NETWORKS = {
    "resnet": lambda c: [(models.resnet(c.classes, depth=d), f"ResNet-{d}") for d in c.depths],
    "mlp": lambda c: [(models.mlp(c.classes, hidden=(w,)), f"MLP 3072-{w}-{c.classes}") for w in (64, 32)],
}


def trainer(source, prepare, student, teacher, teacher_variables, config, plan, stack):
    """A function that takes some steps with batches from the pipeline and waits for the last one."""
    term = objectives.weighted(
        label=(ALPHA, objectives.from_labels(losses.cross_entropy)),
        kd=(1 - ALPHA, objectives.from_logits(losses.kd, temperature=T)),
    )
    parts = (student, teacher, term, optax.sgd(0.01, momentum=0.9))
    batches = data.train_batches(source, config.batch_size, seed=0)
    teacher_variables = plan.put(teacher_variables)
    state = train.init_state(
        *parts, key=jax.random.key(0), batch=batches[0], teacher_variables=teacher_variables, prepare=prepare
    )
    step, box = plan.compile(train.make_train_step(*parts, prepare=prepare)), {"state": plan.put(state)}
    stream = stack.enter_context(contextlib.closing(data.prefetch(batches, plan.place)))

    def run():
        for _ in range(config.steps):
            box["state"], found = step(box["state"], teacher_variables, next(stream))
        return float(found["loss"])

    return run


def benchmark() -> None:
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        rounds=(12, "alternating rounds"),
        seconds=(1.0, "least seconds of one side of a round"),
        steps=(5, "steps between two looks at the clock"),
        batch_size=(64, "examples per step"),
        pair=("resnet", "teacher and student", NETWORKS),
        depths=((56, 20), "depths of the residual networks, teacher and student"),
        examples=(2048, "examples of the data set"),
        views=(2, "views of each example in the cache"),
        classes=(100, "classes"),
        top_k=(16, "top classes that the reduced cache keeps"),
        out=("runs/benchmarks/cached_teacher.json", "JSON file for the figures"),
    )
    arrays, prepare = pictures(config.examples, config.classes)
    source = dataclasses.replace(data.open_source(arrays, num_classes=config.classes), views=config.views)
    plan = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))
    (big, big_name), (small, small_name) = NETWORKS[config.pair](config)
    teacher_variables = models.init(big, jax.random.key(1), prepare(data.train_batches(source, 8, seed=0)[0]))
    same = {
        "made_with": {"teacher": cache.fingerprint_variables(teacher_variables)},
        "prepare": prepare,
        "views": config.views,
    }
    written, nothing = {"live": None, "no teacher": None}, Variables({}, {})
    with contextlib.ExitStack() as stack:
        sides = {"live": trainer(source, prepare, small, big, teacher_variables, config, plan, stack)}
        zeros = data.with_fields(source, teacher_logits=np.zeros((config.examples, config.classes), np.float32))
        sides["no teacher"] = trainer(zeros, prepare, small, models.cached(), nothing, config, plan, stack)
        for name, k in (("cached, all logits", None), (f"cached, top {config.top_k}", config.top_k)):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            written[name] = write_targets(
                folder, source, big, teacher_variables, plan=plan, batch_size=config.batch_size, top_k=k, **same
            )
            teacher = models.cached(num_classes=None if k is None else config.classes)
            joined = cache.with_targets(source, folder, **same)
            sides[name] = trainer(joined, prepare, small, teacher, nothing, config, plan, stack)
        first = {name: run() for name, run in sides.items()}
        np.testing.assert_allclose(first["cached, all logits"], first["live"], rtol=1e-4)  # the same training
        times = timing.alternate(sides, rounds=config.rounds, seconds=config.seconds)
    title = f"{big_name} -> {small_name}, live and cached teacher, batch {config.batch_size}"
    publish(config, title, times, written)


def publish(config, title, times, written):
    """The table of all sides, and the figures in a file."""
    examples = config.steps * config.batch_size
    rows = [
        {
            "teacher": name,
            "rate": timing.spread(examples / times[name]),
            "seconds": times[name],
            "ratio": timing.ratio(times["live"], times[name]),
            "ratio_median": np.median(times["live"] / times[name]),
            "written": written[name] and f"{written[name]:.0f}",
        }
        for name in written
    ]
    columns = dict(teacher="teacher", rate="examples/s", ratio="times the live one", written="written, examples/s")
    notes = ['Median (quartiles). "no teacher" makes the student\'s step on zeros, an upper bound, up to noise.']
    timing.publish(config.out, title, rows, columns, notes=notes, config=vars(config))


if __name__ == "__main__":
    main(benchmark)
