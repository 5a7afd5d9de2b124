"""The classic procedure on scikit-learn's 1,797 handwritten digits: what is a teacher worth when labels are few?

A convolutional teacher sees all 1,000 training labels. A student of 2,410 parameters has 100 labels and 1,000 images:
it is trained alone on its labels, then on alpha CE + (1 - alpha) T^2 KL with alpha moving from the teacher to the
labels, then fine-tuned on its labels. A student with all 1,000 labels shows what the missing labels would be worth.
Steps, rates, T and alpha were chosen on the validation split; the test split is read once, at the end.

    python experiments/digits.py        under a minute on two CPU cores; expect about 90 % alone, 98 % distilled
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import optax

from jaxkd import augment, data, losses, metrics, models, objectives, reports
from jaxkd.experiment.cli import check_positive
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import Evaluator
from jaxkd.experiment.launch import launch
from jaxkd.experiment.teachers import cached_teacher
from jaxkd.experiment.trainer import train_phase, variables_of
from jaxkd.parallel import processes
from jaxkd.runs.logger import read_metrics


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "digits"  # the run's folder
    root: str = "runs"  # where the folders of all runs are
    data_dir: str = "~/tensorflow_datasets"  # where the prepared data set is kept
    seed: int = 0  # of everything
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


SMALL = dict(name="digits-smoke", seeds=2, teacher_steps=2, alone_steps=2, distill_steps=2, finetune_steps=1)


def procedure(config, run, logger, plan) -> None:
    check_positive(config, *(name for name in vars(config) if name.endswith("steps")), "seeds", "labels")
    folder = data.prepare_digits(Path(config.data_dir).expanduser())
    splits = ("train", f"train[:{config.labels}]", "validation", "test")  # the first rows hold all classes alike
    full, few, validation, test = (data.in_memory(data.open_source(folder, split)) for split in splits)
    normalize = augment.compose(augment.to_float(), augment.normalize(*data.statistics(full)))
    prepare = augment.augment_batch(normalize, seed=config.seed)
    setting = Context(run, logger, plan, config.seed, config.batch_size, prepare, prepare)
    big, small = models.convnet(10), models.mlp(10, hidden=(config.hidden,))
    on_labels, keys = objectives.from_labels(losses.cross_entropy), jax.random.key(config.seed + 1)

    def train(name, source, model, term, steps, rate, *, measure, key=None, **options):
        key = jax.random.split(keys, config.seeds) if key is None else key  # several keys: several students at once
        adam = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=1e-3)
        return train_phase(
            setting,
            name,
            source,
            student=model,
            objective=(term, adam),
            steps=steps,
            key=key,
            validation=(measure, validation),
            every=max(1, steps // 5),
            **options,
        )

    # 1. A teacher, trained on all labels.
    alone = Evaluator(setting, big, metrics.CLASSIFICATION)
    taught = train(
        "teacher", full, big, on_labels, config.teacher_steps, 0.003, measure=alone, key=jax.random.key(config.seed)
    )
    teacher = variables_of(taught)
    beside = Evaluator(setting, small, metrics.DISTILLATION, stacked=True, teacher=big, teacher_variables=teacher)

    # 2. Its soft labels, and which examples have a label.
    marked = data.with_fields(full, labelled=np.isin(full.ids, few.ids))
    soft_labels, reader, nothing = cached_teacher(setting, marked, big, teacher, views=1)

    # 3. Students: alone on the labels they have, alone on all labels, distilled, distilled and fine-tuned.
    students = functools.partial(train, model=small, measure=beside, rate=config.learning_rate)
    alpha = optax.linear_schedule(0.0, config.alpha, config.distill_steps)
    both = objectives.weighted(
        label=(alpha, objectives.from_labels(losses.cross_entropy, where="labelled")),
        kd=(lambda step: 1 - alpha(step), objectives.from_logits(losses.kd, temperature=config.temperature)),
    )
    states = {
        "student alone": students("alone", few, term=on_labels, steps=config.alone_steps),
        "student alone, all labels": students("alone-all", full, term=on_labels, steps=config.distill_steps),
        "distilled": (
            distilled := students(
                "distilled",
                soft_labels,
                term=both,
                steps=config.distill_steps,
                teacher=reader,
                teacher_variables=nothing,
            )
        ),
        "distilled + fine-tuned": students(
            "fine-tuned",
            few,
            term=on_labels,
            steps=config.finetune_steps,
            rate=config.learning_rate / 30,
            start=variables_of(distilled),
        ),
    }

    # 4. The test split, once.
    found = {"teacher": alone(taught, test), **{name: beside(state, test) for name, state in states.items()}}
    sizes = [models.count_parameters(teacher)] + [models.count_parameters(variables_of(distilled)) // config.seeds] * 4
    if processes.is_first():
        conclude(run, found, sizes, [len(full), len(few), len(full), len(few), len(few)])


def conclude(run, found, sizes, labels) -> None:
    """Prints the table, draws the figures, finishes the run."""
    test = {name: metrics.values(accumulated) for name, accumulated in found.items()}
    rows = [
        reports.result(n, v, parameters=p, labels=seen)
        for (n, v), p, seen in zip(test.items(), sizes, labels, strict=True)
    ]
    gain, error, verdict = reports.gain(100 * test["student alone"]["accuracy"], 100 * test["distilled"]["accuracy"])
    caption = f"distilled against alone: {verdict}"
    reports.show(
        reports.table(rows, reports.RESULTS, title="500 test digits, mean ± std over students", caption=caption)
    )
    logged = [line for line in read_metrics(run.path) if line["split"] == "validation"]
    reports.plot_curves(logged, run.path / "curves.png", y=["accuracy", "nll"], labels={"nll": "NLL (nats)"})
    bins = {name: accumulated["ece"].bins() for name, accumulated in found.items()}
    reports.plot_reliability(bins, run.path / "reliability.png", title="Reliability, students pooled")
    run.finish(
        {
            "table": rows,
            "test": test,
            "validation": reports.last_and_best(logged),
            "gain": gain,
            "standard_error": error,
        }
    )
    print(f"figures, metrics and checkpoints are in {run.path}")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
