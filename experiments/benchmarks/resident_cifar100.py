"""The CIFAR-100 benchmark with everything on the device: images resident, seeds stacked, many steps a dispatch.

It is `experiments/cifar100/run.py` without a command line of its own packages: neither TFDS nor Grain, ArrayRecord or
tyro need to be installed. It can be interrupted (Ctrl-C, SIGTERM) and goes on where it stopped; the table of what is
done is written each time. Without --source it trains on random images, for the times alone.

    python experiments/benchmarks/resident_cifar100.py --source "npz:cifar100_{split}.npz" --teacher-file resnet56.pth
"""

import sys
from pathlib import Path

import _timing as timing
import numpy as np

sys.path.insert(1, str(Path(__file__).parents[1] / "cifar100"))

import recipe
import run as cifar100

from jaxkd import reports
from jaxkd.experiment import main
from jaxkd.experiment.flags import Devices
from jaxkd.runs import Logger, open_run, read_metrics

METHODS = ("kd", "dkd", "crd", "rkd", "at", "sp")
SMALL = {"teacher": "tiny", "student": "tiny", "epochs": 1, "seeds": 2, "methods": ("kd",), "images": 64}
SMALL |= {"batch_size": 16, "at_once": 2}


def random_images(config, folder):
    """Writes random images of the benchmark's size, and gives the name of the source."""
    rng, folder = np.random.default_rng(0), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", config.images), ("test", max(config.images // 5, 1))):
        image = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"random_{split}.npz", image=image, label=np.arange(count) % 100)
    return f"npz:{folder}/random_{{split}}.npz"


def configuration(config):
    """The benchmark's own configuration."""
    source = config.source or random_images(config, Path(config.root) / "random")
    return cifar100.Config(
        name=config.name,
        root=config.root,
        source=source,
        teacher=config.teacher,
        student=config.student,
        teacher_file=config.teacher_file or None,
        methods=tuple(config.methods),
        epochs=config.epochs,
        seeds=config.seeds,
        batch_size=config.batch_size,
        precision=config.precision,
        at_once=config.at_once,
        resident=True,
    )


def seconds_of(metrics, batch_size):
    """Phase -> seconds of its steps at their median rate, whatever interrupted them."""
    rates, steps = {}, {}
    for row in metrics:
        steps[row["phase"]] = max(row["step"], steps.get(row["phase"], 0))
        if row.get("examples_per_second"):
            rates.setdefault(row["phase"], []).append(row["examples_per_second"])
    return {phase: steps[phase] * batch_size / np.median(found) for phase, found in rates.items()}


def publish(config, path):
    """Writes the table of what is done so far, if anything is."""
    files = [path / name for name in ("metrics.jsonl", "system.jsonl") if (path / name).exists()]
    rows = [row for file in files for row in read_metrics(file)]
    pair, steps = (config.teacher, config.student), {row["phase"]: row["step"] for row in rows}
    seconds = seconds_of(rows, config.batch_size)
    shown = [
        {**row, "steps": steps[row["method"]]} for row in recipe.table_rows(reports.last_and_best(rows), pair, seconds)
    ]
    title = f"{' -> '.join(pair)}, {config.seeds} seeds together, {config.epochs} epochs, {config.precision}"
    notes = ["Seconds are of the steps of all seeds together, at their median rate."]
    notes += [] if config.source else ["On random images: the times are meant, not the accuracies."]
    timing.publish(
        config.out, title, shown, {**recipe.COLUMNS, "steps": "steps so far"}, notes=notes, config=vars(config)
    )


def benchmark():
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        source=("", "data set, such as npz:cifar100_{split}.npz; random images if absent"),
        teacher=("resnet56", "teacher's network"),
        student=("resnet20", "student's network"),
        teacher_file=("", "PyTorch weights of the teacher; it is trained here if absent"),
        methods=(METHODS, "methods of the students, besides one that learns alone"),
        epochs=(240, "passes over the training data"),
        seeds=(3, "students of each kind, trained together"),
        batch_size=(64, "images of a step"),
        precision=("tf32", "format of the products", ("tf32", "float32", "bfloat16")),
        at_once=(71, "steps in one dispatch"),
        images=(50_000, "training images, of random ones"),
        root=("runs", "folder of the runs"),
        name=("resident-cifar100", "folder of this run, in --root"),
        out=("runs/resident_cifar100.json", "JSON file for the figures"),
    )
    chosen, plan = configuration(config), Devices().plan()
    chosen.check()
    with open_run(chosen, root=chosen.root, ignore=("root", "source")) as run:
        try:
            if not run.finished:
                with Logger(run.path, tensorboard=False) as logger, chosen.products():
                    cifar100.procedure(chosen, run, logger, plan)
        finally:
            publish(config, run.path)


if __name__ == "__main__":
    main(benchmark)
