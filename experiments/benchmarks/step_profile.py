"""Profile of one step: kernels by time, gaps between them, and the share of the device's ceiling that they reach.

The steps are those of `against_torch.py` (ResNet-56 -> ResNet-20, live and cached) and of the CIFAR-100 benchmark:
several students in one program with a live teacher. On CPUs the "kernels" are XLA's operations on the busiest thread.

    python experiments/benchmarks/step_profile.py        30 seconds on a GPU
"""

import collections
import re
import tempfile
from pathlib import Path

import _pairs as pairs
import _timing as timing
import against_torch
import jax

from jaxkd.experiment import main
from jaxkd.experiment.flags import StepOptions

SMALL = {**pairs.SMALL, "batch_size": 4, "steps": 2, "at_once": 2}
HOST = ("python", "main")  # threads that only start programs


def events(folder):
    """Spans (start, end, name) in ns of the device's kernels, from the newest trace in a folder."""
    newest = max(Path(folder).rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    found = jax.profiler.ProfileData.from_file(str(newest))
    planes = [p for p in found.planes if p.name.startswith("/device:")] or [p for p in found.planes if "CPU" in p.name]
    lines = [line for plane in planes for line in plane.lines]
    streams = [line for line in lines if line.name.startswith("Stream")]  # of a GPU: what its hardware ran, not nested
    if not streams:
        streams = [x for x in lines if not any(w in x.name.lower() for w in (*HOST, "steps", "modules", "source"))]
    spans = [[(e.start_ns, e.start_ns + e.duration_ns, e.name) for e in line.events] for line in streams]
    return max(spans, key=lambda spans: sum(end - start for start, end, _ in spans), default=[])


def gaps(spans):
    """(seconds covered by spans, seconds between them, number of spans)."""
    covered, between, reached = 0.0, 0.0, None
    for start, end, _ in sorted(spans):
        if reached is not None and start > reached:
            between += start - reached
        begin = start if reached is None else max(start, reached)
        covered += max(end - begin, 0.0)
        reached = end if reached is None else max(end, reached)
    return covered / 1e9, between / 1e9, len(spans)


def profiled(launch, wait, placed, steps):
    """Spans of a few calls."""
    wait(launch(placed))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                result = launch(placed)
            wait(result)
        return events(folder)


def rows_of(pair, precision, kind, config):
    """Rows of the table of one step: its kernels, the most expensive first, and the whole."""
    batch = against_torch.examples(pair, config.batch_size, config)
    teacher_variables, batch = against_torch.with_logits(pair, config, batch, config.batch_size)
    with StepOptions(precision=precision).products():
        arguments = (pair, config, batch, teacher_variables, precision, kind == "cached")
        seeds = config.seeds if kind == "together" else None
        (launch, place, wait), _ = against_torch.library(*arguments, config.at_once, seeds)
        spans = profiled(launch, wait, place(batch), config.steps)
        paper = against_torch.on_paper(*arguments) if seeds is None else None
    covered, between, count = gaps(spans)
    number, totals = config.steps * config.at_once, collections.Counter()
    for start, end, name in spans:
        totals[re.sub(r"[._]?\d+$", "", name)] += (end - start) / 1e9
    step = {"step": f"{pair}, {precision}, {kind if kind != 'together' else f'{config.seeds} together'}"}
    whole = 1e3 * (covered + between) / number
    share = f"{100 * paper.floor_ms / whole:.1f}" if whole and paper else "-"
    yield step | {
        "kernel": "all",
        "ms": f"{1e3 * covered / number:.4g}",
        "count": round(count / number, 1),
        "share": share,
    }
    yield step | {"kernel": "gaps between them", "ms": f"{1e3 * between / number:.4g}"}
    for name, seconds in totals.most_common(config.top):
        yield step | {"kernel": name, "ms": f"{1e3 * seconds / number:.4g}"}


def benchmark():
    fast = timing.is_accelerator()
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        **pairs.sizes(fast) | {"pairs": (("resnet",), "teachers and students: resnet, bert")},
        precisions=(("tf32",), "formats of the products", tuple(against_torch.TOLERANCES)),
        batch_size=(64, "examples per step"),
        at_once=(20 if fast else 1, "steps in one dispatch"),
        steps=(3, "dispatches in the trace"),
        seeds=(3, "students together in the step of the benchmark"),
        top=(12, "kernels in the table"),
        out=("runs/step_profile.json", "JSON file for the figures"),
    )
    rows, columns = [], {"step": "step", "kernel": "kernel", "ms": "ms per step", "count": "kernels per step"}
    columns["share"] = "floor on an H100 / measured, %"
    for pair in config.pairs:
        for precision in config.precisions:
            for kind in ("live", "cached", "together"):
                rows += rows_of(pair, precision, kind, config)
                timing.publish(config.out, "Profile of a step", rows, columns, config=vars(config))


if __name__ == "__main__":
    main(benchmark)
