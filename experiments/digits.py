"""The classic procedure on scikit-learn's 1,797 handwritten digits: what is a teacher worth when labels are few?

A convolutional teacher sees all 1,000 training labels. A student of 2,410 parameters has 100 labels and 1,000 images:
it is trained alone on its labels, then on alpha CE + (1 - alpha) T^2 KL with alpha moving from the teacher to the
labels, then fine-tuned on its labels. A student with all 1,000 labels shows what the missing labels would be worth.
Steps, rates, T and alpha were chosen on the validation split; the test split is read once, at the end.

    python experiments/digits.py        about a minute on two CPU cores; expect about 91 % alone, 98 % distilled
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import optax
import rich

from jaxkd import augment, data, losses, metrics, models, objectives, parallel, report
from jaxkd.log import Logger, read_metrics
from jaxkd.loop import Every
from jaxkd.run import main, open_run, parse
from jaxkd.stage import NOTHING, Measure, Setting, predict, train_stage
from jaxkd.types import Variables


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "digits"  # the run's folder
    root: str = "runs"  # where the folders of all runs are
    data_dir: str = "~/tensorflow_datasets"  # where the prepared data set is kept
    seed: int = 0  # of the teacher, the order of the examples and the students' keys
    seeds: int = 5  # students of each kind, trained at once
    labels: int = 100  # labels that the students may see, an equal share of each class
    batch_size: int = 64  # examples a step
    temperature: float = 4.0  # T
    alpha: float = 0.5  # weight of the labels at the end of distillation; it starts at 0
    hidden: int = 32  # width of the student's hidden layer
    teacher_steps: int = 450  # updates of the teacher
    alone_steps: int = 1000  # updates of the students that learn from labels alone
    distill_steps: int = 1500  # updates of the students that learn from the teacher
    finetune_steps: int = 100  # updates of the distilled students on their labels
    learning_rate: float = 0.01  # of the students; the teacher's is 0.003, fine-tuning takes a thirtieth
    wandb: bool = False  # log to Weights & Biases as well


SMALL = dict(name="digits-smoke", seeds=2, teacher_steps=4, alone_steps=4, distill_steps=4, finetune_steps=2)
COLUMNS = dict(network="network", parameters="parameters", labels="labels seen", accuracy="accuracy %", ece="ECE %",
               agreement="agreement %", kl="KL to teacher (nats)")  # fmt: skip


def experiment() -> None:
    config = parse(Config, description=__doc__, smoke=SMALL)
    with open_run(config, root=config.root, ignore=("root", "data_dir", "wandb")) as run:
        if run.finished:
            print(run.notice)
            return
        with Logger(run.path, wandb=config.wandb, config=config) as logger:
            procedure(config, run, logger)


def procedure(config, run, logger) -> None:
    folder = data.prepare_digits(Path(config.data_dir).expanduser())
    splits = ("train", f"train[:{config.labels}]", "validation", "test")  # the first rows hold all classes alike
    full, few, validation, test = (data.in_memory(data.open_source(folder, split)) for split in splits)
    normalize = augment.compose(augment.to_float(), augment.normalize(*data.statistics(full)))
    prepare = augment.augment_batch(normalize, seed=config.seed)
    setting = Setting(run, logger, parallel.make_mesh(), config.seed, config.batch_size, prepare, prepare)
    big, small = models.convnet(10), models.mlp(10, hidden=(config.hidden,))
    on_labels = objectives.from_labels(losses.cross_entropy)

    def adam(rate, steps):
        return optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=1e-3)

    def students(name, source, term, steps, *, rate=config.learning_rate, **options):
        every = Every(max(1, steps // 5), "validation", lambda state: measure(state, validation)[0])
        return train_stage(setting, name, source, student=small, term=term, optimizer=adam(rate, steps), steps=steps,
                           key=jax.random.split(jax.random.key(config.seed + 1), config.seeds), hooks=[every],
                           **options)  # fmt: skip

    # 1. A teacher, trained on all labels.
    measure_big = Measure(setting, big, metrics.CLASSIFICATION)
    every = Every(max(1, config.teacher_steps // 5), "validation", lambda state: measure_big(state, validation)[0])
    states = {"teacher": train_stage(setting, "teacher", full, student=big, term=on_labels, steps=config.teacher_steps,
                                     optimizer=adam(0.003, config.teacher_steps), key=jax.random.key(config.seed),
                                     hooks=[every])}  # fmt: skip
    teacher = Variables(states["teacher"].params["student"], states["teacher"].state["student"])
    measure = Measure(setting, small, metrics.DISTILLATION, stacked=True, teacher=big, teacher_variables=teacher)

    # 2. Its soft labels, and which examples have a label.
    ids, logits = predict(setting, big, teacher, full)
    made_by = {"teacher": data.fingerprint_variables(teacher), "labels": str(config.labels)}
    soft = {"teacher_logits": logits, "labelled": np.isin(ids, few.ids)}
    data.write_targets(run.path / "soft_labels.npz", ids, soft, made_by)
    soft_full = data.with_targets(full, run.path / "soft_labels.npz", fingerprint=made_by)

    # 3. Students: alone on the labels they have, alone on all labels, distilled, distilled and fine-tuned.
    states["student alone"] = students("alone", few, on_labels, config.alone_steps)
    states["student alone, all labels"] = students("alone-all", full, on_labels, config.distill_steps)
    alpha = optax.linear_schedule(0.0, config.alpha, config.distill_steps)
    both = objectives.weighted(
        label=(alpha, objectives.from_labels(losses.cross_entropy, where="labelled")),
        kd=(lambda step: 1 - alpha(step), objectives.from_logits(losses.kd, temperature=config.temperature)),
    )
    states["distilled"] = distilled = students("distilled", soft_full, both, config.distill_steps, teacher=models.cached())
    start = Variables(distilled.params["student"], distilled.state["student"])
    states["distilled + fine-tuned"] = students(
        "fine-tuned", few, on_labels, config.finetune_steps, rate=config.learning_rate / 30, start=start
    )

    # 4. The test split, once.
    found = {n: (measure_big if n == "teacher" else measure)(state, test) for n, state in states.items()}
    seen = {n: len(full if n in ("teacher", "student alone, all labels") else few) for n in states}
    rows = [row(n, values, count(states[n]), seen[n]) for n, (values, _) in found.items()]
    conclude(run, rows, found)


def count(state) -> int:
    return models.count_parameters(Variables(state.params["student"], {})) // max(1, state.step.size)


def row(name, values, parameters, labels) -> dict:
    """One line of the table; percentages where that is how people say it."""
    shown = {n: report.mean_std(values[n], scale=100) for n in ("accuracy", "ece", "agreement") if n in values}
    kl = report.mean_std(values["kl"], digits=3) if "kl" in values else "-"
    return {"network": name, "parameters": f"{parameters:,}", "labels": f"{labels:,}", **shown, "kl": kl}


def conclude(run, rows, found) -> None:
    """Prints the table and what it says, draws the figures, finishes the run."""
    accuracy = {name: np.atleast_1d(values["accuracy"]) * 100 for name, (values, _) in found.items()}
    alone, distilled = accuracy["student alone"], accuracy["distilled"]
    gain, error = distilled.mean() - alone.mean(), np.sqrt((alone.var(ddof=1) + distilled.var(ddof=1)) / len(alone))
    verdict = "more" if gain > 2 * error else "NOT more"
    caption = f"distilled - alone = {gain:+.2f} points, {verdict} than two standard errors ({error:.2f} each)"
    rich.print(report.table(rows, COLUMNS, title="500 test digits, mean ± std over students", caption=caption))
    report.plot_curves(read_metrics(run.path), run.path / "curves.png", y=["loss", "accuracy"], title="Training")
    bins = {name: calibration["ece"].bins() for name, (_, calibration) in found.items()}
    report.plot_reliability(bins, run.path / "reliability.png", title="Reliability on the test split")
    run.finish({"table": rows, "test": {name: values for name, (values, _) in found.items()}, "gain": gain,
                "standard_error": error})  # fmt: skip
    print(f"figures, metrics and checkpoints are in {run.path}")


if __name__ == "__main__":
    main(experiment)
