"""Kills a run with SIGKILL again and again and compares what it ends with, bit for bit, with an undisturbed run.

The run is an ordinary experiment in a process of its own: on scikit-learn's digits a teacher, then a student with batch
norm, dropout, augmentation, momentum, a moving average, a weight on a schedule and CRD's memory banks, with evaluations
and checkpoints. Every second kill comes while a checkpoint is being written, the others between two log lines or while
the run starts. The comparison covers parameters, states, optimizer, moving average, log lines, predictions, summary and
the checkpoints that are kept. The exit code is 1 if anything differs.

    python experiments/benchmarks/crash.py --kills 20
"""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax

from jaxkd import augment, data, experiment, losses, metrics, models, objectives, reports
from jaxkd.experiment import (
    RUN,
    TRAINING,
    Context,
    Evaluator,
    check_domains,
    domains,
    flag,
    launch,
    main,
    parse,
    predict,
    train_phase,
    variables_of,
)
from jaxkd.files import explain_write_errors, prepare_file
from jaxkd.keys import plain_words
from jaxkd.runs.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Config:
    kills: int = flag(20, "times that the run is killed", TRAINING, domains.COUNT)
    steps: int = flag(300, "updates of the student; the teacher has a third of them", TRAINING, domains.COUNT)
    every: int = flag(15, "updates between two checkpoints", TRAINING, domains.COUNT)
    fault: Literal["none", "order", "bank"] = flag(
        "none", "mistake of each resumed start, to show that it is noticed: order of the data, or memory bank", RUN
    )
    seed: int = flag(0, "seed of the moments of the kills", RUN, domains.SEED)
    cache: bool = flag(False, "let starts share compiled programs, which is faster; else each compiles its own", RUN)
    timeout: float = flag(600.0, "seconds after which a start counts as hanging", RUN, domains.SECONDS)
    out: str = flag("runs/crash.json", "JSON file for the findings", RUN)


SMALL = dict(kills=2, steps=12, every=4, cache=True)


# The run that is killed.


@dataclasses.dataclass(frozen=True)
class RunConfig(experiment.Config):
    data_dir: str = "data"
    batch_size: int = 32
    ema_decay: float = 0.9
    steps: int = flag(300, "updates of the student", TRAINING, domains.COUNT)
    every: int = flag(15, "updates between two evaluations and checkpoints", TRAINING, domains.COUNT)
    fault: Literal["none", "order", "bank"] = flag("none", "mistake of a resumed start", RUN)


def procedure(config, run, logger, plan) -> None:
    folder = data.prepare_digits(config.data_dir)
    full, validation, test = (data.in_memory(data.open_source(folder, s)) for s in ("train", "validation", "test"))
    clean = augment.compose(augment.to_float(), augment.normalize(*data.statistics(full)))
    noisy = augment.augment_batch(augment.compose(augment.random_crop(1), clean), seed=0)
    if run.resumed and config.fault == "bank":
        Checkpoints.restore = without_memories(Checkpoints.restore)
    order = int(run.resumed and config.fault == "order")
    clean = augment.augment_batch(clean, seed=0)
    context = Context(run, logger, plan, order, config.batch_size, noisy, clean, config)
    big, small = models.convnet(10, widths=(8,)), models.convnet(10, widths=(4,), dropout=0.2)

    def train(name, model, evaluator, term, steps, **options):
        optimizer = optax.sgd(optax.cosine_decay_schedule(0.05, steps), momentum=0.9)
        return train_phase(
            context,
            name,
            full,
            student=model,
            objective=(term, optimizer),
            steps=steps,
            key=jax.random.key(0),
            validation=(evaluator, validation),
            every=config.every,
            log_every=5,
            **options,
        )

    on_labels = objectives.from_labels(losses.cross_entropy)
    evaluator = Evaluator(context, big, metrics.CLASSIFICATION)
    teacher = train("teacher", big, evaluator, on_labels, max(1, config.steps // 3))
    with_teacher = dict(teacher=big, teacher_variables=variables_of(teacher))
    term = objectives.weighted(
        label=on_labels,
        kd=(optax.linear_schedule(1.0, 0.2, config.steps), objectives.from_logits(losses.kd, temperature=4.0)),
        crd=(0.5, objectives.crd(student="pooled", teacher="pooled", examples=len(full), width=16, negatives=64)),
    )
    evaluator = Evaluator(context, small, metrics.DISTILLATION, **with_teacher)
    state = train("student", small, evaluator, term, config.steps, **with_teacher)
    ids, logits = predict(context, small, variables_of(state), test)
    arrays = {**leaves("teacher", teacher), **leaves("student", state), "test ids": ids, "test logits": logits}
    np.savez(run.path / "final.npz", **arrays)
    run.finish({"test": metrics.values(evaluator(state, test))})


def leaves(name, tree):
    """The arrays of a tree by their path."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        found[f"{name}.{jax.tree_util.keystr(path, simple=True, separator='.')}"] = np.asarray(plain_words(leaf))
    return found


def without_memories(restore):
    """`Checkpoints.restore` with a fault: it forgets the memories of the term."""

    @functools.wraps(restore)
    def forgetful(self, like):
        state = restore(self, like)
        return state and state.replace(state={**state.state, "term": like.state["term"]})

    return forgetful


# The program that kills and compares it.


def differences(one, other):
    """Differences of two finished runs, as sentences."""
    a, b = (dict(np.load(folder / "final.npz")) for folder in (one, other))
    bits = [{name: (x.dtype, x.shape, x.tobytes()) for name, x in arrays.items()} for arrays in (a, b)]
    found = [f"{name} differs" for name in sorted({*a, *b}) if bits[0].get(name) != bits[1].get(name)]
    a, b = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (one, other))
    found += [f"metrics.jsonl has {len(a)} lines and {len(b)}"] if len(a) != len(b) else []
    found += [f"line {n} of metrics.jsonl differs" for n, (x, y) in enumerate(zip(a, b, strict=False), 1) if x != y][:1]
    a, b = (json.loads((folder / "summary.json").read_text()) for folder in (one, other))
    clocks = ("wall_seconds", "examples_per_second")
    found += [f"summary.json differs in {k}" for k in sorted({*a, *b}) if k not in clocks and a.get(k) != b.get(k)]
    a, b = ({str(p.relative_to(folder)) for p in folder.glob("checkpoints/*/*")} for folder in (one, other))
    return found + [f"{path} is kept by one of them" for path in sorted(a ^ b)]


class Killer:
    """Starts runs in a folder and kills them."""

    def __init__(self, config, folder) -> None:
        self.config, self.root, self.random = config, folder, np.random.default_rng(config.seed)
        self.startup = 0.0

    def start(self, name):
        """One start of a run."""
        options = {
            "name": name,
            "root": self.root,
            "data-dir": self.root / "data",
            "steps": self.config.steps,
            "every": self.config.every,
            "fault": self.config.fault,
        }
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, __file__, "train", *words]
        kept = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(self.root / "xla") if self.config.cache else ""
        with (self.root / f"{name}.txt").open("ab") as said:
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": kept}
            return subprocess.Popen(command, stdout=said, stderr=said, env=environment)

    def lines(self, name):
        """Number of lines that the run has logged."""
        log = self.root / name / "metrics.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def saves(self, name):
        """Checkpoints that are being written, or were being written when the run was killed."""
        return set((self.root / name / "checkpoints").glob("*/*.orbax-checkpoint-tmp*"))

    def finish(self, name) -> bool:
        """Lets the run go on undisturbed to its end."""
        return self.until(name, self.start(name), lambda: False)

    def until(self, name, process, due) -> bool:
        """Waits until something is due (then the process is still alive) or the run ended by itself, as it should."""
        began = time.monotonic()
        while process.poll() is None:
            if due():
                return False
            if time.monotonic() - began > self.config.timeout:
                process.kill()
                raise RuntimeError(f"{name} was still running after {self.config.timeout} seconds: see {self.root}.")
            time.sleep(0.002)
        if process.returncode:
            said = (self.root / f"{name}.txt").read_text()[-2000:]
            raise RuntimeError(f"{name} left with code {process.returncode} by itself:\n{said}")
        return True

    def kill(self, name, moment):
        """Starts the run and kills it at some moment; None if it was finished before."""
        process, began = self.start(name), time.monotonic()
        lines, saves = self.lines(name), self.saves(name)
        wait, more = self.random.uniform(0, self.startup), int(self.random.integers(1, 5))
        due = {
            "during a save": lambda: len(self.saves(name) - saves) > 0,
            "between lines": lambda: self.lines(name) >= lines + more,
            "while starting": lambda: time.monotonic() - began > wait,
        }[moment]
        if self.until(name, process, due):
            return None
        if moment != "during a save" or more % 2:  # half of the saves get a little further
            time.sleep(self.random.uniform(0, 0.02))
        process.kill()
        process.wait()
        half = bool(self.saves(name) - saves)
        return {
            "moment": moment,
            "seconds": f"{time.monotonic() - began:.2f}",
            "lines": self.lines(name),
            "half-written": "yes" if half else "no",
        }


def compare(config, folder):
    """Kills runs and compares them: a row of the table for each kill, and the differences from an undisturbed run."""
    killer = Killer(config, folder)
    began = time.monotonic()
    process = killer.start("undisturbed")
    killer.until("undisturbed", process, lambda: killer.lines("undisturbed") > 0)
    killer.startup = time.monotonic() - began
    killer.until("undisturbed", process, lambda: False)
    rows, found, turn = [], [], 0
    while len(rows) < config.kills:  # a run may end before all kills are done: then another one is begun
        name, done, turn = f"killed-{turn}", False, turn + 1
        while len(rows) < config.kills and not done:
            moment = ("during a save", "between lines", "during a save", "while starting")[len(rows) % 4]
            row = killer.kill(name, moment)
            rows, done = (rows, True) if row is None else ([*rows, {"kill": len(rows) + 1, "run": name, **row}], False)
        if not done:
            killer.finish(name)
        found += [f"{name}: {what}" for what in differences(folder / "undisturbed", folder / name)]
    return rows, found


def benchmark() -> None:
    config = parse(Config, description=__doc__, smoke=SMALL)
    check_domains(config)
    prepare_file(config.out)
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    rows, found = compare(config, folder)
    half = sum(row["half-written"] == "yes" for row in rows)
    verdict = f"{len(found)} differences" if found else "every bit is the same"
    caption = f"{len(rows)} kills, {half} of them with a checkpoint half-written: {verdict}"
    columns = {
        "kill": "kill",
        "run": "run",
        "moment": "moment",
        "seconds": "seconds after the start",
        "lines": "lines logged",
        "half-written": "checkpoint half-written",
    }
    reports.show(reports.table(rows, columns, title="Killed and started again", caption=caption))
    with explain_write_errors(config.out):
        Path(config.out).write_text(json.dumps({"kills": rows, "half_written": half, "differences": found}, indent=2))
    if found:
        print("\n".join([*found[:20], f"the runs are in {folder}"]), file=sys.stderr)
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:  # the run itself, which the benchmark starts in processes of its own
        del sys.argv[1]
        launch(RunConfig, procedure, description=__doc__, smoke={})
    else:
        main(benchmark)
