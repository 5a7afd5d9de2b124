"""Summaries that choose sentences of a user's documents, by an encoder that first learned to classify texts.

    python experiments/text/extraction.py --source tsv:reviews.tsv --documents jsonl:articles.jsonl --sentences 3

A line of the documents is {"document": "...", "summary": "..."}, of which labels are made: the sentences that together
share most words with the summary (greedy ROUGE-1); or {"sentences": [...], "chosen": [0, 2]}. The encoder learns the
classes of --source, then whether a sentence is chosen, a sentence at a time, without the rest of its document. Beside
it stand the same from the published encoder and from nothing, the first sentences, those nearest the document's tf-idf
centroid, random ones, and the labels themselves, which no choice of whole sentences beats by much.
"""

import dataclasses
from typing import Literal

import jax
import numpy as np

from jaxkd import models, reports
from jaxkd.experiment import (
    DATA,
    NETWORKS,
    TRAINING,
    Context,
    check_choice,
    conclude,
    flag,
    launch,
    predict,
)
from jaxkd.experiment.domains import COUNT, POSITIVE, WHOLE
from jaxkd.experiment.extraction import as_texts, at_random, centroid, evaluate, lead, open_documents
from jaxkd.experiment.text_transfer import OLD, Learning, make_ways, tasks_of
from jaxkd.experiment.texts import TextConfig, open_texts_of

COLUMNS = {"way": "sentences are chosen by", "precision": "precision at k %", "rouge_1": "ROUGE-1 F1 %"}
WAYS = ("nothing", "published", "frozen", "fine-tuned")


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
    name: str = "text-extraction"
    documents: str | None = flag(None, "documents with summaries: jsonl:PATH, also with {split} in it", DATA)
    sentences: int = flag(3, "sentences of a summary, k", DATA, COUNT)
    layers: tuple[int, ...] = flag((0, 1, 2), "layers of the encoder to keep", NETWORKS, WHOLE)
    max_length: int = 64
    batch_size: int = 32
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    old_epochs: int = flag(1, "passes over the texts of --source", TRAINING, COUNT)
    epochs: int = flag(2, "passes over the sentences of the documents", TRAINING, COUNT)
    learning_rate: float = flag(1e-4, "largest rate of Adam; last layers have ten times it", TRAINING, POSITIVE)
    ways: tuple[str, ...] = flag(WAYS, "starts: nothing, published, and after --source frozen or fine-tuned", TRAINING)
    seeds: int = flag(3, "students of each way, trained together", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "ways", "way", WAYS)
        if self.documents is None:
            raise ValueError("no --documents are given: write --documents jsonl:PATH, as --help describes.")


SMALL = dict(
    name="text-extraction-smoke",
    source="sentences",
    documents="sentences",
    teacher="tiny",
    layers=(0,),
    max_length=32,
    buckets=1,
    epochs=1,
    ways=("published",),
    seeds=1,
)


def procedure(config, run, logger, plan) -> None:
    documents = open_documents(config.documents, config.sentences)
    texts = {"old": open_texts_of(config), "new": as_texts(config.documents, documents)}
    tasks = tasks_of(config, texts, config.layers)
    context = Context(run, logger, plan, config.seed, config.batch_size, dict, dict, config)
    learning, many, test = Learning(context, tasks, config.learning_rate), range(config.seeds), documents["test"]

    # 1. Floors, and the labels as the best that sentences can do.
    found, rows = {}, []

    def add(way, scores):
        """Adds a row: the summaries of students, by each one's scores of each document's sentences."""
        measured = [evaluate(test, one, config.sentences) for one in scores]
        found[way] = {name: [one[name] for one in measured] for name in measured[0]}
        rows.append({"way": way, **{n: reports.mean_std(values, scale=100) for n, values in found[way].items()}})

    labels = [np.isin(np.arange(len(one.sentences)), one.chosen) for one in test]
    for name, score in (("random", at_random), ("lead", lead), ("tf-idf centroid", centroid(documents["train"]))):
        add(f"({name})", [[score(one) for one in test]])
    add("(the labels)", [labels])

    # 2. The classifier, and the choice of sentences from each start.
    starts = {"published": (tasks.encoder.variables, "^heads/")}
    if any(name in ("frozen", "fine-tuned") for name in config.ways):
        start = learning.begin(*starts["published"], OLD.frozen, [0])
        options = dict(start=start, seeds=[0], epochs=config.old_epochs, measured=["old"])
        variables, found["classifier"] = learning.fit("classifier", OLD, "old", **options)
        starts["old"] = (models.thaw(jax.tree.map(lambda leaf: leaf[0], variables)), "^heads/new/")
    ways, bounds = make_ways(), np.cumsum([len(one.sentences) for one in test])[:-1]
    for name in config.ways:
        way = ways[name]
        start = None if way.start is None else learning.begin(*starts[way.start], way.frozen, many)
        options = dict(start=start, seeds=many, epochs=config.epochs, measured=[])
        stack, _ = learning.fit(name, way, "new", **options)
        scores = []
        for seed in many:
            variables = jax.tree.map(lambda leaf, seed=seed: leaf[seed], stack)
            ids, logits = predict(context, learning.side("new", way.frozen), variables, tasks.sources["new"][2])
            logits = logits[np.argsort(ids)]
            scores.append(np.split(logits[:, 1] - logits[:, 0], bounds))
        add(name, scores)
    title = f"{len(test):,} documents, {config.sentences} sentences each, {config.seeds} seed(s)"
    conclude(run, rows, COLUMNS, title=title, test=jax.tree.map(lambda x: np.asarray(x).tolist(), found))


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
