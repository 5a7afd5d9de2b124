"""Costs of all losses, forward and with their gradients: time, operations and bytes, at the sizes that flags set.

The roofline fraction is the time that the device would need at its measured rates, for the operations as written at
the peak of a matrix product, or for reading the inputs and writing the results once, whichever takes longer, over the
time it took. Fractions are small where a loss is so small that launching it takes longer.

    python experiments/benchmarks/loss_costs.py        about two minutes on two CPU cores
    python experiments/benchmarks/loss_costs.py --only kd dkd rkd
"""

import _costs as costs
import _timing as timing
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses, testing
from jaxkd.experiment.cli import main
from jaxkd.models.size import count_work

SMALL = {
    "batch": 8,
    "classes": 16,
    "width": 8,
    "side": 4,
    "length": 8,
    "vocabulary": 32,
    "only": ("kd", "hint", "rkd"),
    "rounds": 1,
    "seconds": 0.01,
}


def case(loss, sizes):
    """A function of the student's first array and of all the others, and these arrays, as the loss declares them."""
    call, inputs, fixed = testing.declaration_of(loss).example(testing.Draw(sizes))
    arrays = {name: in_float32(value) for name, value in (inputs | fixed).items() if holds_arrays(value)}
    hyper = {name: value for name, value in fixed.items() if name not in arrays}
    first = next(iter(inputs))

    def function(student, others):
        return call(**{first: student}, **others, **hyper)

    return function, (arrays.pop(first), arrays)


def holds_arrays(value):
    """True for an argument that is made of arrays, false for a number or a shape."""
    return all(isinstance(leaf, np.ndarray | jax.Array) for leaf in jax.tree.leaves(value))


def in_float32(value):
    """The same arrays on the device, floating ones in float32."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else None), value)


def forward_and_gradient(function):
    """The summed loss, and the same with its gradient in the first argument."""

    def total(*arrays):
        return jnp.sum(function(*arrays))

    return {"forward": total, "gradient": jax.value_and_grad(total)}


def measure(name, function, arrays, peaks, config):
    row = {"loss": name, "shape": " ".join("x".join(map(str, x.shape)) for x in jax.tree.leaves(arrays[0]))}
    ways = forward_and_gradient(function)
    programs = {way: jax.jit(f) for way, f in ways.items()}
    calls = {way: lambda p=p: jax.block_until_ready(p(*arrays)) for way, p in programs.items()}
    for call in calls.values():
        call()
    times = timing.alternate(calls, rounds=config.rounds, seconds=config.seconds)
    for way, f in ways.items():
        work = count_work(f, *arrays)
        moved = costs.bytes_of(arrays, jax.eval_shape(f, *arrays))
        floor = max(work.total / peaks["float32"], moved / peaks["bytes"])
        row |= {
            f"{way}_us": timing.spread(times[way], scale=1e6),
            f"{way}_mflop": work.total / 1e6,
            f"{way}_mb": moved / 2**20,
            f"{way}_roofline": 100 * floor / np.median(times[way]),
        }
    return row | {"seconds": times}


def sizes_of(config):
    """The configuration's sizes of the inputs."""
    c = config
    return testing.Sizes(c.batch, c.classes, c.width, c.side, c.side, c.length, c.vocabulary, heads=4)


def benchmark() -> None:
    fast = timing.is_accelerator()
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        batch=(256 if fast else 64, "examples"),
        classes=(1000, "classes of logits"),
        width=(256 if fast else 64, "width of embeddings, channels of maps, hidden size of tokens"),
        side=(16 if fast else 8, "height and width of maps"),
        length=(64 if fast else 16, "tokens of an example"),
        vocabulary=(8192 if fast else 1024, "classes of a token"),
        only=((), "names of the losses; all of them if absent", losses.__all__),
        rounds=(10 if fast else 5, "alternating rounds of forward and gradient"),
        seconds=(0.05, "least length of one side of a round"),
        out=("runs/loss_costs.json", "where the figures go"),
    )
    chosen = sorted({*config.only} or losses.__all__)
    peaks = costs.peaks(seconds=0.5, small=config.rounds == 1)
    sizes = sizes_of(config)
    rows = [measure(name, *case(getattr(losses, name), sizes), peaks, config) for name in chosen]
    columns = {"loss": "loss", "shape": "student"}
    for way, title in (("forward", "forward"), ("gradient", "with gradient")):
        columns |= {
            f"{way}_us": f"{title} µs",
            f"{way}_mflop": "MFLOP",
            f"{way}_mb": "MiB",
            f"{way}_roofline": "% of roofline",
        }
    notes = [
        f"Median (quartiles); measured peaks: {peaks['float32'] / 1e9:,.0f} GFLOP/s of float32 products, "
        f"{peaks['bytes'] / 1e9:,.1f} GB/s."
    ]
    timing.publish(
        config.out, "Cost of each loss, float32", rows, columns, notes=notes, peaks=peaks, config=vars(config)
    )


if __name__ == "__main__":
    main(benchmark)
