"""What `test_processes.py` starts several times over: it writes down what this process finds."""

import pathlib
import pickle
import sys

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxkd import cache, data, parallel
from jaxkd.cache import shards, write
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import predict
from jaxkd.parallel import processes
from jaxkd.train import devices, step

jax.config.update("jax_numpy_rank_promotion", "raise")

INPUTS = PartitionSpec(None, None, "model")  # of a convolution
SPLIT = {"student": {r"stage1_conv2/kernel": INPUTS}, "teacher": {r"stage1_conv2/kernel": INPUTS}}
PLANS = {
    "jit": lambda: parallel.with_jit(),
    "pmap": lambda: parallel.with_pmap(),
    "model": lambda: parallel.with_jit(parallel.make_mesh(model=4), **SPLIT),
}


FEW = ("couples the batch",)  # objectives whose params are split over a second axis as well


def spread(names, ways, more):
    """Results of each objective under each way, whole and on the host, and how much of two kernels lies here."""
    from matrix import parts

    found = {}
    for name in names:
        makes = parts(name)
        for way in [*ways, *(["model"] if more and name in FEW else [])]:
            plan = PLANS[way]()
            state, metrics = makes.run(plan)
            found[name, way] = parallel.fetch((metrics, state.params, state.state))
            if way == "model":
                student, teacher = state.params["student"], plan.put(makes.known).params
                kernels = [student["stage1_conv2"], teacher["stage1_conv2"], student["stage1_conv1"]]
                kernels = [layer["kernel"] for layer in kernels]
                found["shares"] = [kernel.addressable_shards[0].data.size / kernel.size for kernel in kernels]
                found["fingerprint"] = cache.fingerprint_variables(plan.put(makes.known))
    return found


def without_gather():
    """Negative control: each device on its own shard, under pmap over all processes."""
    from matrix import parts

    devices.gathered = step.gathered = lambda tree, axis_name: tree
    _, metrics = parts("couples the batch").run(parallel.with_pmap(), steps=1)
    return parallel.fetch(metrics[0])


def measured():
    """Evaluation of a padded batch, and a model's predictions for rows that do not fill a batch."""
    from helpers import make_batch
    from matrix import parts

    makes, found = parts("per example"), {}
    batch = make_batch(21)
    source = data.open_source({name: batch[name] for name in ("image", "label")})
    for way in ("jit", "pmap"):
        plan = PLANS[way]()
        setting = Context(None, None, plan, 0, 16, lambda batch: batch, lambda batch: batch)
        found[way] = jax.device_get(makes.measure(plan)), predict(setting, makes.teacher, makes.known, source)
    return found


def cached(folder):
    """A teacher's targets in two views, written by all processes together, and who has written which shard."""
    from helpers import make_batch
    from matrix import parts

    makes, batch, own = parts("per example"), make_batch(21), []
    source = data.open_source({name: batch[name] for name in ("image", "label")})
    same = {"prepare": lambda batch: batch, "views": 2, "made_with": {}}
    writing = shards.writing
    shards.writing = lambda where, name: own.append(name) or writing(where, name)
    options = {"plan": PLANS["jit"](), "batch_size": 8, "rows": 6}
    write.write_targets(folder, source, makes.teacher, makes.known, **options, **same)
    return own, cache.with_targets(source, folder, **same).targets(np.arange(21), 1)


def sentences():
    """What is said of a barrier to which one process does not come, and of rows that cannot be shared."""
    said = {}
    if processes.is_first():
        try:
            processes.barrier("the tea", 0.5)
        except ValueError as error:
            said["barrier"] = str(error)
    processes.barrier("after tea")
    try:
        parallel.put_batch({"image": jax.numpy.zeros((3, 2))}, parallel.make_mesh())
    except ValueError as error:
        said["rows"] = str(error)
    return said


def work(folder, names, ways, more):
    import matrix

    matrix.BEGUN |= pickle.loads((pathlib.Path(folder) / "begun.pickle").read_bytes())
    found = spread(names, ways, more)
    if more:
        found |= {"measured": measured(), "sentences": sentences(), "control": without_gather()}
        found["cached"] = cached(pathlib.Path(folder) / "targets")
    path = pathlib.Path(folder) / f"{jax.process_index()}.pickle"
    path.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    coordinator, count, number, folder, names, ways, more = sys.argv[1:]

    def main():
        processes.start(coordinator, int(count), int(number), peer_timeout=60)
        work(folder, names.split(","), ways.split(","), more == "more")

    processes.run(main)
