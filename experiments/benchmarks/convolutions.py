"""A convolution with both its gradients, by the library's kernel and by XLA, alone and inside a loop.

`jaxkd.kernels.convolution.convolve` is compared with `lax.conv_general_dilated` on layers of networks for 32x32 images:
as one call, and as a step of a `lax.scan`, as in several steps at once and in stacks of students. All take turns in one
process.

    python experiments/benchmarks/convolutions.py        about a minute on two CPU cores
"""

import functools

import _timing as timing
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.experiment import main
from jaxkd.kernels.convolution import convolve

SMALL = dict(rounds=1, seconds=0.001, batch_size=1, loop=2, layers=("depthwise",))
LAYERS = {  # title; side, channels, features, kernel, stride, groups
    "first": ("3x3, 3 -> 16", (32, 3, 16, 3, 1, 1)),
    "early": ("3x3, 16 -> 16", (32, 16, 16, 3, 1, 1)),
    "late": ("3x3, 64 -> 64", (8, 64, 64, 3, 1, 1)),
    "strided": ("3x3, 16 -> 32, stride 2", (32, 16, 32, 3, 2, 1)),
    "last": ("3x3, 512 -> 512, on 4x4", (4, 512, 512, 3, 1, 1)),
    "small": ("3x3, 128 -> 128, on 2x2", (2, 128, 128, 3, 1, 1)),
    "grouped": ("1x1, 240 -> 60, 3 groups", (16, 240, 60, 1, 1, 3)),
    "narrow": ("3x3, 64 -> 64, 32 groups, on 8x8", (8, 64, 64, 3, 1, 32)),
    "pointwise": ("1x1, 32 -> 192", (16, 32, 192, 1, 1, 1)),
    "depthwise": ("3x3 depthwise, 192", (16, 192, 192, 3, 1, 192)),
}


def contestants(layer, config):
    """Name -> a function that computes once and waits."""
    side, channels, features, kernel, stride, groups = layer
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((config.batch_size, side, side, channels)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((kernel, kernel, channels // groups, features)) / kernel, jnp.float32)

    def side_by(convolution):
        conv = functools.partial(
            convolution,
            window_strides=(stride, stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

        def descend(arrays, _):
            value, found = jax.value_and_grad(lambda arrays: jnp.mean(conv(*arrays) ** 2))(arrays)
            return jax.tree.map(lambda a, g: a - 0.01 * g, arrays, found), value

        def loop(arrays):
            return jax.lax.scan(descend, arrays, length=config.loop)

        once, many = jax.jit(lambda arrays: descend(arrays, None)), jax.jit(loop)
        return (lambda: jax.block_until_ready(once((x, w)))), (lambda: jax.block_until_ready(many((x, w))))

    (ours, ours_loop), (theirs, theirs_loop) = side_by(convolve), side_by(jax.lax.conv_general_dilated)
    return {"jaxkd": ours, "xla": theirs, "jaxkd, loop": ours_loop, "xla, loop": theirs_loop}


def benchmark() -> None:
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        rounds=(4, "alternating rounds"),
        seconds=(0.1, "least seconds of one side of a round"),
        batch_size=(16, "images"),
        loop=(2, "steps of the loop"),
        layers=(tuple(LAYERS), "names of the layers", LAYERS),
        out=("runs/benchmarks/convolutions.json", "JSON file for the figures"),
    )
    rows = []
    for name in config.layers:
        title, layer = LAYERS[name]
        sides = contestants(layer, config)
        for run in sides.values():  # compile
            run()
        times = timing.alternate(sides, rounds=config.rounds, seconds=config.seconds)
        times = {side: seconds / (config.loop if "loop" in side else 1) for side, seconds in times.items()}
        row = {f"{side} ms": timing.spread(seconds, scale=1e3) for side, seconds in times.items()}
        rows.append(
            {
                "layer": title,
                **row,
                "once": timing.ratio(times["jaxkd"], times["xla"]),
                "looped": timing.ratio(times["jaxkd, loop"], times["xla, loop"]),
                "seconds": times,
            }
        )
    columns = {
        "layer": "layer",
        "xla ms": "XLA ms",
        "jaxkd ms": "jaxkd ms",
        "once": "jaxkd / XLA",
        "xla, loop ms": "XLA, in a loop, ms",
        "jaxkd, loop ms": "jaxkd, in a loop, ms",
        "looped": "jaxkd / XLA, in a loop",
    }
    title = f"A convolution and both its gradients, float32, batch {config.batch_size}"
    timing.publish(config.out, title, rows, columns, config=vars(config))


if __name__ == "__main__":
    main(benchmark)
