"""All figures of one accelerator in a few minutes: stages in order of value, each in a process and a time of its own.

    python experiments/benchmarks/accelerator.py --minutes 9 --out runs/accelerator --source "npz:cifar100_{split}.npz"
    python experiments/benchmarks/accelerator.py --platform cpu --scale 0.01 --out runs/dry    (every stage, tiny)

A stage writes its table, STAGE.md and STAGE.json, as soon as it has one, and README.md in --out joins them. A stage
that fails or runs out of time is reported and the next one begins. The same command again goes on: it repeats nothing
that is done. It needs JAX, Flax, optax, Orbax and chex, and PyTorch for the comparison; none of jaxkd's other packages,
and jaxkd itself need not be installed.

Options of XLA for small steps, which the stage `flags` tries: --xla-flags "--xla_gpu_graph_min_graph_size=2" (CUDA
graphs), --xla_gpu_enable_triton_gemm, --xla_gpu_enable_latency_hiding_scheduler, --xla_gpu_autotune_level, and
--xla_gpu_per_fusion_autotune_cache_dir=FOLDER. Compiled programs are kept in OUT/programs for the next start.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # jaxkd need not be installed

import _timing as timing

from jaxkd.experiment import main
from jaxkd.experiment.domains import Domain
from jaxkd.files import read_json, write_json

FOLDER = Path(__file__).resolve().parent
SCALE = Domain("above 0, up to 1", 1e-6, 1.0)
DRY = 0.1  # scales below run each program as its --smoke does
SLOWER = 10  # factor of a stage's seconds in such a run, which may be on CPUs
GRACE = 20  # seconds that a stage has for its checkpoint when its time is over


class Stage(NamedTuple):
    """One program with its flags.

    Attributes:
      program: Its file in this folder, without ending.
      seconds: Its time at most.
      words: Flag -> value or values.
      counted: Flags whose values `--scale` multiplies.
      rest: Whether it has all the time that is left.
    """

    program: str
    seconds: float
    words: dict[str, Any] = {}  # noqa: RUF012, read and never changed
    counted: tuple[str, ...] = ()
    rest: bool = False


STEP = {"rounds": 10, "seconds": 0.2, "epochs": 0}
RESNET = {"pairs": ["resnet"], "batch_sizes": [64], **STEP}
BERT = {"pairs": ["bert"], "batch_sizes": [64], **STEP}
MANY = {"pairs": ["mlp", "resnet"], "counts": [1, 4, 16, 64], "forms": ["vmap", "map"]}
TORCH = {"program": "against_torch", "counted": ("rounds",)}
COMPILED = ["compile-nhwc", "reduce-overhead-nhwc"]
STAGES = {
    "ceilings": Stage("ceilings", 20, {"seconds": 0.5}),
    "resnet": Stage(seconds=60, words={**RESNET, "peers": ["eager", "eager-nhwc"]}, **TORCH),
    "resnet_compiled": Stage(seconds=100, words={**RESNET, "peers": COMPILED}, **TORCH),
    "cifar100": Stage("resident_cifar100", 150, {"epochs": 240, "seeds": 3}, ("epochs",)),
    "students": Stage("many_students", 60, {**MANY, "rounds": 4}, ("rounds",)),
    "vocabulary": Stage("large_vocabulary", 45, {"vocabularies": [131_072], "rounds": 8}, ("rounds",)),
    "bert": Stage(seconds=60, words={**BERT, "peers": ["eager"]}, **TORCH),
    "resnet_512": Stage(
        seconds=90, words={**RESNET, "batch_sizes": [512], "peers": ["eager-nhwc", "compile-nhwc"]}, **TORCH
    ),
    "resnet_bfloat16": Stage(
        seconds=90, words={**RESNET, "precisions": ["bfloat16"], "peers": ["eager-nhwc", "compile-nhwc"]}, **TORCH
    ),
    "bert_bfloat16": Stage(
        seconds=90, words={**BERT, "precisions": ["bfloat16"], "peers": ["eager", "compile"]}, **TORCH
    ),
    "profile": Stage("step_profile", 45, {"precisions": ["tf32", "bfloat16"]}),
    "bert_compiled": Stage(seconds=90, words={**BERT, "peers": ["compile", "reduce-overhead"]}, **TORCH),
    "flags": Stage("xla_flags", 120, {"rounds": 5}, ("rounds",)),
    "cifar100_rest": Stage("resident_cifar100", 3600, {"epochs": 240, "seeds": 3}, ("epochs",), rest=True),
}
"""Name -> stage, in order of value; the last one finishes what the fourth began."""


def words_of(name, config):
    """Command line of a stage."""
    stage, out = STAGES[name], Path(config.out)
    given = {key: stage.words[key] for key in stage.words}
    for key in stage.counted:
        given[key] = max(1, round(given[key] * config.scale))
    if config.scale < DRY:  # the program's own small sizes, with the stage's choice of pairs and formats
        networks = stage.program in ("against_torch", "step_profile", "xla_flags")
        given = {key: value for key, value in given.items() if networks and key in ("pairs", "precisions", "epochs")}
        given |= {"depths": [8, 8], "at_once": 2} if networks else {}
    if stage.program == "resident_cifar100":
        given |= {"root": out, "source": config.source, "teacher_file": config.teacher_file}
    given["out"] = out / f"{name.removesuffix('_rest')}.json"
    words = [sys.executable, str(FOLDER / f"{stage.program}.py"), *(["--smoke"] if config.scale < DRY else [])]
    for key, value in given.items():
        words += [f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return words


def environment(config):
    """Environment of all stages."""
    more = {"PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])}
    more |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_COMPILATION_CACHE_DIR": str(Path(config.out) / "programs")}
    more |= {"JAX_PLATFORMS": config.platform} if config.platform else {}
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), config.xla_flags]).strip()
    return os.environ | more | ({"XLA_FLAGS": flags} if flags else {})


def run(name, seconds, config):
    """Runs a stage for some seconds at most: "done", or what became of it."""
    log = Path(config.out) / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            words_of(name, config), env=environment(config), stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = end(process)
            return f"out of time after {seconds:.0f} s" if code else "done"
        except BaseException:  # such as Ctrl-C, which does not reach another session
            end(process)
            raise
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "done" if code == 0 else f"failed with code {code}: {(lines or ['it said nothing'])[-1][:200]}"


def end(process):
    """Asks a stage to stop, and kills it with all that it started if it does not."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def report(config, state):
    """Joins the tables that there are."""
    out = Path(config.out)
    parts = ["# Figures of one accelerator", f"`{' '.join(['accelerator.py', *sys.argv[1:]])}`"]
    for name in STAGES:
        if name in state:
            parts.append(f"## {name}\n\n{state[name]['said']}, {state[name]['seconds']:.0f} s")
            table = out / f"{name}.md"
            parts += [table.read_text()] if table.exists() else []
    (out / "README.md").write_text("\n\n".join(parts) + "\n")


def benchmark():
    config = timing.flags(
        __doc__,
        smoke={"scale": 0.01, "only": ("ceilings",), "out": "runs/accelerator-smoke"},
        minutes=(9.0, "minutes for all stages together"),
        scale=(1.0, "factor of rounds and epochs; below 0.1 every program is as small as its --smoke", SCALE),
        only=(tuple(STAGES), "stages to run", tuple(STAGES)),
        platform=("", "platform of JAX, such as cpu or cuda; what there is if absent"),
        source=("", "CIFAR-100, such as npz:cifar100_{split}.npz; random images, for the times alone, if absent"),
        teacher_file=("", "PyTorch weights of the ResNet-56; it is trained if absent"),
        xla_flags=("", "flags of XLA for all stages"),
        out=("runs/accelerator", "folder for the figures and tables"),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the stage that runs is ended too
    out, began = Path(config.out), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    file = out / "state.json"
    state = read_json(file) if file.exists() else {}
    for name in config.only:
        left = 60 * config.minutes - (time.monotonic() - began)
        if state.get(name, {}).get("said") == "done" or left < 5:
            print(f"{name}: {'done before' if left >= 5 else 'no time left'}", flush=True)
            continue
        start = time.monotonic()
        seconds = STAGES[name].seconds * (1 if config.scale >= DRY else SLOWER)
        said = run(name, left if STAGES[name].rest else min(left, seconds), config)
        state[name] = {"said": said, "seconds": time.monotonic() - start}
        write_json(file, state)
        report(config, state)
        print(f"{name}: {said}, {state[name]['seconds']:.0f} s", flush=True)
    if bad := [name for name in config.only if state.get(name, {}).get("said") != "done"]:
        sys.exit(f"not done: {', '.join(bad)}; what they said stands in {out}/STAGE.log")


if __name__ == "__main__":
    main(benchmark)
