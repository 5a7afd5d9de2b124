"""KL between two language-model heads, dense compared with `losses.chunked_kl`: time and peak memory by vocabulary.

Value and gradients in the student's hidden states and output matrix; the teacher's side is frozen. Memory is that of
the compiled program without its inputs and results; on an accelerator also the peak of a process that does nothing
else, inputs and results included.

    python experiments/benchmarks/large_vocabulary.py        about three minutes on two CPU cores
"""

import json
import os
import subprocess
import sys

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # so that peaks mean something

import _timing as timing
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd.experiment import main

SMALL = {"vocabularies": (256,), "tokens": 128, "width": 16, "rounds": 1, "seconds": 0.01}
T = 2.0


def dense(hs, ht, ws, wt):
    return losses.masked_token_kl((hs @ ws)[None], (ht @ wt)[None], jnp.ones((1, len(hs))), temperature=T)


def chunked(hs, ht, ws, wt):
    return losses.chunked_kl(hs, ht, ws, wt, temperature=T)


WAYS = {"dense": dense, "chunked": chunked}


def inputs(tokens, width, vocabulary):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = [jax.random.normal(k, (tokens, width)) for k in keys[:2]]
    return (*hidden, *(jax.random.normal(k, (width, vocabulary)) / width**0.5 for k in keys[2:]))


def compiled(way, arguments):
    return jax.jit(jax.value_and_grad(WAYS[way], argnums=(0, 2))).lower(*arguments).compile()


def peak_alone(way, vocabulary, config):
    """Peak of a process of its own, or None where the back end does not count."""
    words = ["--one", way, "--vocabularies", vocabulary, "--tokens", config.tokens, "--width", config.width]
    done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        return None  # it did not fit; the time's column shows what happened in this process
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def measure(vocabulary, config):
    arguments = inputs(config.tokens, config.width, vocabulary)
    programs = {way: compiled(way, arguments) for way in WAYS}
    values = {way: jax.block_until_ready(programs[way](*arguments)) for way in WAYS}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-5), *values.values())
    values.clear()
    calls = {way: lambda p=p: jax.block_until_ready(p(*arguments)) for way, p in programs.items()}
    times = timing.alternate(calls, rounds=config.rounds, seconds=config.seconds)
    temporary = {way: p.memory_analysis().temp_size_in_bytes for way, p in programs.items()}
    row = {"vocabulary": vocabulary, "seconds": times, "temporary_bytes": temporary}
    for way in WAYS:
        row |= {f"{way}_ms": timing.spread(times[way], scale=1e3), f"{way}_mb": temporary[way] / 2**20}
    row["time"] = timing.ratio(times["chunked"], times["dense"])
    row["memory"] = f"1/{temporary['dense'] / temporary['chunked']:.1f}"
    if timing.is_accelerator():
        row["peak_bytes"] = peaks = {way: peak_alone(way, vocabulary, config) for way in WAYS}
        row["peaks"] = ", ".join(f"{p / 2**20:,.0f}" if p else "-" for p in peaks.values())
    return row


def benchmark() -> None:
    accelerator = timing.is_accelerator()
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        vocabularies=((8_192, 32_768, 131_072), "classes of both heads"),
        tokens=(8192 if accelerator else 1024, "tokens of a batch"),
        width=(1024 if accelerator else 256, "hidden size of both sides"),
        rounds=(20 if accelerator else 5, "alternating rounds"),
        seconds=(0.3, "least seconds of one side of a round"),
        one=(None, "for the benchmark itself: run this variant once and print its peak memory", WAYS),
        out=("runs/large_vocabulary.json", "JSON file for the figures"),
    )
    if config.one:
        arguments = inputs(config.tokens, config.width, config.vocabularies[0])
        jax.block_until_ready(compiled(config.one, arguments)(*arguments))
        print(json.dumps({"peak": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")}))
        return
    rows = [measure(vocabulary, config) for vocabulary in config.vocabularies]
    columns = {
        "vocabulary": "vocabulary",
        "dense_ms": "dense ms",
        "chunked_ms": "chunked ms",
        "time": "chunked / dense",
        "dense_mb": "dense MiB",
        "chunked_mb": "chunked MiB",
        "memory": "memory",
    }
    if accelerator:
        columns["peaks"] = "peaks, dense and chunked, MiB"
    title = f"KL and gradients, {config.tokens} tokens, hidden size {config.width}, float32"
    timing.publish(config.out, title, rows, columns, notes=["Median (quartiles)."], config=vars(config))


if __name__ == "__main__":
    main(benchmark)
