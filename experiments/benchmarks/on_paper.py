"""Stages of `accelerator.py` on paper: operations, bytes, and the least and the expected time on an H100.

Operations and bytes are counted from the programs as written, on shapes alone, so this needs no accelerator. Bytes are
those of the operands and results of products and convolutions and of what reductions read: elementwise operations are
taken to be fused into these. The floor is the larger of the times that both take at the peaks (990, 495 and 67 TFLOP/s
in bfloat16, TF32 and float32, 3.35 TB/s). The expected time is the same at half the peak of products and 0.8 of the
memory's, plus 2 us for each product, convolution and reduction: small networks wait for their kernels' starts.

    python experiments/benchmarks/on_paper.py        a minute
"""

from types import SimpleNamespace

import _pairs as pairs
import _timing as timing
import against_torch
import jax
import jax.numpy as jnp
import large_vocabulary
import many_students
from _paper import PEAKS, floor

from jaxkd.experiment import main
from jaxkd.models.size import count_parameters

SMALL = {"depths": (8, 8), "layers": (2, 1), "batch_sizes": (4,), "epochs": 1}
FULL = {name: default for name, (default, *_) in pairs.sizes(True).items()}
STEPS = 781  # of an epoch of the benchmark


def shown(what, found, **more):
    """A row of the table."""
    return {"what": what, **{key: f"{value:.4g}" for key, value in found._asdict().items()}, **more}


def steps(pair, batch_size, config):
    """Rows of a pair's steps, live and cached."""
    drawn = against_torch.examples(pair, batch_size, config)
    batch = jax.eval_shape(lambda b: b, drawn)
    teacher = against_torch.networks(pair, config)[0]
    variables = jax.eval_shape(teacher.init, jax.random.key(0), batch)
    batch |= {against_torch.CACHED: jax.ShapeDtypeStruct((batch_size, against_torch.CLASSES), jnp.float32)}
    for precision in ("tf32", "bfloat16"):
        for cached in (False, True):
            found = against_torch.on_paper(pair, config, batch, variables, precision, cached)
            kind = f"{pair}, batch {batch_size}, {precision}, {'cached' if cached else 'live'}"
            yield shown(f"step, {kind}", found)
            if pair == "resnet" and batch_size == 64 and precision == "tf32":
                seconds = config.epochs * STEPS * found.expected_ms / 1e3
                yield {"what": f"KD of {config.epochs} epochs, {kind}", "expected_ms": f"{seconds:.0f} s"}


def vocabulary(config):
    """Rows of the KL at a large vocabulary: dense, and the least that any form has to do."""
    tokens, width, classes = 8192, 1024, 131_072
    sides = [jax.ShapeDtypeStruct((tokens, width), jnp.float32)] * 2
    heads = [jax.ShapeDtypeStruct((width, classes), jnp.float32)] * 2
    dense = floor(jax.value_and_grad(large_vocabulary.dense, argnums=(0, 2)), *sides, *heads)
    yield shown(f"KL and gradients, {tokens:,} tokens, {classes:,} classes, dense", dense)
    chunked = floor(jax.value_and_grad(large_vocabulary.chunked, argnums=(0, 2)), *sides, *heads)
    yield shown("the same in chunks (`losses.chunked_kl`)", chunked)


def students(config):
    """Rows of stacks of students: parameters, and what their states take of the memory."""
    image = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    for name in ("mlp", "resnet"):
        title, _, student = many_students.PAIRS[name]
        variables = jax.eval_shape(student.init, jax.random.key(0), {"image": image})
        held = 3 * 4 * 64 * count_parameters(variables) / 1e9  # params, momentum, gradient of 64 students
        yield {"what": f"64 students of {title}: params, momentum, gradients", "gbyte": f"{held:.4g}"}


def benchmark():
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        **{name: (FULL[name], "as in against_torch.py") for name in ("depths", "layers")},
        batch_sizes=((64, 512), "examples per step"),
        epochs=(240, "epochs of the benchmark"),
        out=("runs/on_paper.json", "JSON file for the figures"),
    )
    sizes = SimpleNamespace(**{**FULL, **vars(config)})
    rows = [row for pair in ("resnet", "bert") for size in config.batch_sizes for row in steps(pair, size, sizes)]
    rows += [*students(config), *vocabulary(config)]
    columns = {"what": "what", "gflop": "GFLOP", "gbyte": "GB", "floor_ms": "floor, ms", "expected_ms": "expected, ms"}
    peaks = ", ".join(f"{peak / 1e12:.0f} TFLOP/s in {name}" for name, peak in PEAKS.items())
    timing.publish(config.out, f"On paper: an H100 with {peaks}", rows, columns, config=vars(config))


if __name__ == "__main__":
    main(benchmark)
