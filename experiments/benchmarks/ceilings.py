"""Ceilings of a device: matrix products in each format, copies, and how long one dispatch takes.

python experiments/benchmarks/ceilings.py        20 seconds on a GPU
"""

import _costs as costs
import _timing as timing
import jax
import jax.numpy as jnp
from _paper import BANDWIDTH, PEAKS

from jaxkd.experiment import main
from jaxkd.experiment.flags import StepOptions

SMALL = {"side": 64, "length": 2**12, "seconds": 0.01}


def products(precision, config):
    """Operations a second of a large product."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    with StepOptions(precision=precision).products():
        return costs.peak_products(dtype, size=config.side, seconds=config.seconds)


def dispatch(config):
    """Seconds of a call of a program that does next to nothing: (waited for, in a row of a hundred)."""
    add = jax.jit(lambda x: x + 1)
    x = jax.block_until_ready(add(jnp.zeros(8)))

    def chain():
        y = x
        for _ in range(100):
            y = add(y)
        jax.block_until_ready(y)

    waited = timing.seconds_per_call(lambda: jax.block_until_ready(add(x)), config.seconds)
    return waited, timing.seconds_per_call(chain, config.seconds) / 100


def benchmark():
    fast = timing.is_accelerator()
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        side=(8192 if fast else 1024, "side of the square matrices"),
        length=(2**28 if fast else 2**24, "numbers of float32 in the array that is copied"),
        seconds=(0.5, "least seconds of each measurement"),
        out=("runs/ceilings.json", "JSON file for the figures"),
    )
    rows = []
    for precision, peak in PEAKS.items():
        found = products(precision, config)
        rows.append({"what": f"products, {precision}, TFLOP/s", "found": found / 1e12, "peak": peak / 1e12})
    copied = costs.peak_bytes(size=config.length, seconds=config.seconds)
    rows.append({"what": "reading and writing memory, TB/s", "found": copied / 1e12, "peak": BANDWIDTH / 1e12})
    waited, in_a_row = dispatch(config)
    rows.append({"what": "one dispatch that is waited for, us", "found": 1e6 * waited})
    rows.append({"what": "one dispatch of a hundred in a row, us", "found": 1e6 * in_a_row})
    columns = {"what": "ceiling", "found": "measured", "peak": "H100 on paper"}
    timing.publish(config.out, "Ceilings of the device", rows, columns, config=vars(config))


if __name__ == "__main__":
    main(benchmark)
