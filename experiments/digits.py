"""Distillation on scikit-learn's 1,797 handwritten digits: the worth of a teacher when labels are few.

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

from jaxkd import augment, data, experiment, losses, metrics, models, objectives, reports
from jaxkd.experiment import (
    DATA,
    NETWORKS,
    TRAINING,
    Context,
    Evaluator,
    cached_teacher,
    conclude,
    flag,
    launch,
    train_phase,
    variables_of,
)
from jaxkd.experiment.domains import COUNT, FRACTION, POSITIVE, SEVERAL, TEMPERATURE


@dataclasses.dataclass(frozen=True)
class Config(experiment.Config):
    name: str = "digits"
    data_dir: str = flag("~/tensorflow_datasets", "folder of the prepared data sets", DATA)
    labels: int = flag(100, "labels that the students see, as many of each class", DATA, COUNT)
    widths: tuple[int, ...] = flag((32, 64), "channels of the teacher's stages", NETWORKS, COUNT)
    hidden: int = flag(32, "units of the student's hidden layer", NETWORKS, COUNT)
    seeds: int = flag(5, "students of each kind, trained together", TRAINING, SEVERAL)
    temperature: float = flag(4.0, "softmax temperature T of the soft labels", TRAINING, TEMPERATURE)
    alpha: float = flag(0.5, "weight of the labels at the end of distillation; it starts at 0", TRAINING, FRACTION)
    teacher_steps: int = flag(450, "updates of the teacher", TRAINING, COUNT)
    alone_steps: int = flag(1000, "updates of the students that learn from their few labels alone", TRAINING, COUNT)
    distill_steps: int = flag(1500, "updates of the distilled students, and of those with all labels", TRAINING, COUNT)
    finetune_steps: int = flag(100, "updates of the distilled students on their labels afterwards", TRAINING, COUNT)
    learning_rate: float = flag(
        0.01, "Adam's first rate for students; fine-tuning takes a thirtieth", TRAINING, POSITIVE
    )

    def check(self) -> None:
        """Checks values before the run's folder is made."""
        super().check()
        if self.labels % 10 or self.labels > 1000:
            raise ValueError(f"--labels is {self.labels}: give a multiple of 10 up to 1000, as many of each class.")


SMALL = dict(
    name="digits-smoke", widths=(4,), seeds=2, teacher_steps=1, alone_steps=1, distill_steps=1, finetune_steps=1
)


def load(config):
    """All training rows, those with labels, validation and test rows; and the normalisation of images."""
    folder = data.prepare_digits(Path(config.data_dir).expanduser())
    splits = ("train", f"train[:{config.labels}]", "validation", "test")  # the first rows hold all classes alike
    sources = [data.in_memory(data.open_source(folder, split)) for split in splits]
    normalize = augment.compose(augment.to_float(), augment.normalize(*data.statistics(sources[0])))
    return sources, augment.augment_batch(normalize, seed=config.seed)


def procedure(config, run, logger, plan) -> None:
    (full, few, validation, test), prepare = load(config)
    context = Context(run, logger, plan, config.seed, config.batch_size, prepare, prepare, config)
    big, small = models.convnet(10, widths=config.widths), models.mlp(10, hidden=(config.hidden,))
    on_labels, keys = objectives.from_labels(losses.cross_entropy), jax.random.key(config.seed + 1)

    def train(name, source, model, term, steps, rate, *, evaluator, key=None, **options):
        key = jax.random.split(keys, config.seeds) if key is None else key  # several keys: several students together
        adam = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=1e-3)
        options |= dict(steps=steps, key=key, validation=(evaluator, validation), every=max(1, steps // 5))
        return train_phase(context, name, source, student=model, objective=(term, adam), **options)

    # 1. A teacher, trained on all labels.
    evaluator, key = Evaluator(context, big, metrics.CLASSIFICATION), jax.random.key(config.seed)
    teacher = train("teacher", full, big, on_labels, config.teacher_steps, 0.003, evaluator=evaluator, key=key)
    teacher_variables = variables_of(teacher)
    against_teacher = Evaluator(
        context, small, metrics.DISTILLATION, stacked=True, teacher=big, teacher_variables=teacher_variables
    )

    # 2. Its soft labels, and which examples have a label.
    marked = data.with_fields(full, labelled=np.isin(full.ids, few.ids))
    soft_labels, reader, nothing = cached_teacher(context, marked, big, teacher_variables, views=1)

    # 3. Students: alone on the labels they have, alone on all labels, distilled, distilled and fine-tuned.
    students = functools.partial(train, model=small, evaluator=against_teacher, rate=config.learning_rate)
    alpha = optax.linear_schedule(0.0, config.alpha, config.distill_steps)
    both = objectives.weighted(
        label=(alpha, objectives.from_labels(losses.cross_entropy, where="labelled")),
        kd=(lambda step: 1 - alpha(step), objectives.from_logits(losses.kd, temperature=config.temperature)),
    )
    states = {
        "student alone": students("alone", few, term=on_labels, steps=config.alone_steps),
        "student alone, all labels": students("alone-all", full, term=on_labels, steps=config.distill_steps),
    }
    cached = dict(teacher=reader, teacher_variables=nothing)
    distilled = students("distilled", soft_labels, term=both, steps=config.distill_steps, **cached)
    rest = dict(rate=config.learning_rate / 30, start=variables_of(distilled))
    tuned = students("fine-tuned", few, term=on_labels, steps=config.finetune_steps, **rest)
    states |= {"distilled": distilled, "distilled + fine-tuned": tuned}

    # 4. The test split, once.
    sums = {"teacher": evaluator(teacher, test), **{n: against_teacher(state, test) for n, state in states.items()}}
    parameters = [models.count_parameters(variables_of(s)) for s in (teacher, distilled)]
    sizes = [parameters[0]] + [parameters[1] // config.seeds] * 4
    compare(run, sums, sizes, [len(full), len(few), len(full), len(few), len(few)])


def compare(run, sums, sizes, labels):
    """The table of all networks, the gain of distillation over the student alone, and the figures."""
    found = {name: metrics.values(accumulators) for name, accumulators in sums.items()}
    gain, error, verdict = reports.gain(*(100 * found[name]["accuracy"] for name in ("student alone", "distilled")))
    conclude(
        run,
        [reports.result(n, found[n], parameters=p, labels=k) for n, p, k in zip(found, sizes, labels, strict=True)],
        title="500 test digits, mean ± std over students",
        caption=f"distilled against alone: {verdict}",
        curves=["accuracy", "nll"],
        reliability={name: accumulators["ece"].bins() for name, accumulators in sums.items()},
        test=found,
        gain=gain,
        standard_error=error,
    )


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
