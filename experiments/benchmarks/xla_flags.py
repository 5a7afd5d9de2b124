"""XLA's flags for GPUs that matter for small steps: a short trial of each, on ResNet-56 -> ResNet-20.

Each set runs `against_torch.py` without peers in a process of its own, since XLA reads its flags when it starts. The
names are those of jaxlib 0.10 to 0.12; a set that a version does not know is reported and left out.

    python experiments/benchmarks/xla_flags.py        two minutes on a GPU
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import _timing as timing

from jaxkd.experiment import main

TRIALS = {
    "none": (),
    "no command buffers (CUDA graphs)": ("--xla_gpu_enable_command_buffer=",),
    "command buffers from 2 kernels on": ("--xla_gpu_graph_min_graph_size=2",),
    "no Triton GEMM": ("--xla_gpu_enable_triton_gemm=false",),
    "latency-hiding scheduler": ("--xla_gpu_enable_latency_hiding_scheduler=true",),
    "autotuning at level 4 of 4": ("--xla_gpu_autotune_level=4",),
    "autotuning at level 0": ("--xla_gpu_autotune_level=0",),
}
"""Name -> flags. `--xla_gpu_per_fusion_autotune_cache_dir=FOLDER` keeps results of autotuning for the next start."""

SMALL = {"trials": ("none",), "pair": "bert", "depths": (8, 8), "batch_size": 4, "at_once": 1, "rounds": 1}


def trial(name, config, folder):
    """Rows of a run with one set of flags, or the last line of what it said."""
    out = Path(folder) / "out.json"
    words = [
        *(["--smoke"] if config.smoke else []),
        "--pairs",
        config.pair,
        "--peers",
        "none",
        "--batch-sizes",
        config.batch_size,
        "--epochs",
        0,
        "--out",
        out,
    ]
    words += ["--depths", *config.depths, "--at-once", config.at_once, "--rounds", config.rounds, "--seconds", 0.2]
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), *TRIALS[name]]).strip()
    program = Path(__file__).with_name("against_torch.py")
    done = subprocess.run(
        [sys.executable, str(program), *map(str, words)],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"flags": name, "said": (done.stderr.strip().splitlines() or ["nothing"])[-1][:120]}
    found = {row["side"]: row["step"] for row in json.loads(out.read_text())["rows"]}
    return {"flags": name, **found}


def benchmark():
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        trials=(tuple(TRIALS), "sets of flags to try", tuple(TRIALS)),
        pair=("resnet", "teacher and student", ("resnet", "bert")),
        depths=((56, 20), "depths of the residual networks, teacher and student"),
        batch_size=(64, "examples per step"),
        at_once=(20, "steps in one dispatch, besides one"),
        rounds=(5, "rounds"),
        out=("runs/xla_flags.json", "JSON file for the figures"),
    )
    rows, columns = [], {"flags": "flags"}
    with tempfile.TemporaryDirectory() as folder:
        for name in config.trials:
            rows.append(trial(name, config, folder))
            columns |= {side: side for side in rows[-1] if side != "flags"}
            more = {"flags": {name: " ".join(TRIALS[name]) for name in config.trials}, "config": vars(config)}
            timing.publish(config.out, "Flags of XLA, ms per step", rows, columns, **more)


if __name__ == "__main__":
    main(benchmark)
