"""Summaries that choose sentences of a user's documents, by an encoder that first learned to classify texts.

    python experiments/text/extraction.py --source tsv:reviews.tsv --documents jsonl:articles.jsonl --sentences 3

A line of the documents is {"document": "...", "summary": "..."}, of which labels are made: the sentences that together
share most words with the summary (greedy ROUGE-1); or {"sentences": [...], "chosen": [0, 2]}. The encoder learns the
classes of --source, then whether a sentence is chosen, a sentence at a time, without the rest of its document. Beside
it stand the same from the published encoder and from nothing, the first sentences, those nearest the document's tf-idf
centroid, random ones, and the labels themselves, which no choice of whole sentences beats by much.
"""

import dataclasses

import jax
import numpy as np

from jaxkd import reports
from jaxkd.experiment import (
    DATA,
    TRAINING,
    Context,
    check_choice,
    conclude,
    flag,
    launch,
)
from jaxkd.experiment.domains import COUNT
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.extraction import as_texts, at_random, centroid, evaluate, lead, open_documents
from jaxkd.experiment.text_transfer import FROZEN, SMALL_TASKS, TasksConfig, tasks_of, text_learning
from jaxkd.experiment.texts import open_texts_of
from jaxkd.experiment.two_tasks import make_ways
from jaxkd.train import students

COLUMNS = {"way": "sentences are chosen by", "precision": "precision at k %", "rouge_1": "ROUGE-1 F1 %"}
WAYS = ("nothing", "published", "frozen", "fine-tuned")


@dataclasses.dataclass(frozen=True)
class Config(TasksConfig):
    name: str = "text-extraction"
    documents: str | None = flag(None, "documents with summaries: jsonl:PATH, also with {split} in it", DATA)
    sentences: int = flag(3, "sentences of a summary, k", DATA, COUNT)
    ways: tuple[str, ...] = flag(WAYS, "starts: nothing, published, and after --source frozen or fine-tuned", TRAINING)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "ways", "way", WAYS)
        if self.documents is None:
            raise ValueError("no --documents are given: write --documents jsonl:PATH, as --help describes.")


SMALL = dict(SMALL_TASKS, name="text-extraction-smoke", documents="sentences", ways=("published",))


def procedure(config, run, logger, plan) -> None:
    documents = open_documents(config.documents, config.sentences)
    texts = {"old": open_texts_of(config), "new": as_texts(config.documents, documents)}
    tasks = tasks_of(config, texts, config.layers)
    context = Context(run, logger, plan, config.seed, config.batch_size, dict, dict, config)
    learning, many, test = text_learning(context, tasks, config.learning_rate), range(config.seeds), documents["test"]

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
        trained, found["classifier"] = learning.learn_old(tasks.encoder.variables, config.old_epochs, "classifier")
        starts["old"] = (trained, "^heads/new/")
    ways, bounds = make_ways(**FROZEN), np.cumsum([len(one.sentences) for one in test])[:-1]
    for name in config.ways:
        way = ways[name]
        start = None if way.start is None else learning.begin(*starts[way.start], way, many)
        options = dict(start=start, seeds=many, epochs=config.epochs, measured=[])
        stack, _ = learning.fit(name, way, "new", **options)
        answers_of, scores = predictor(context, learning.side("new", way)), []
        for seed in many:
            _, logits = answers_of(students.pick_student(stack, seed))(tasks.sources["new"][2])
            scores.append(np.split(logits[:, 1] - logits[:, 0], bounds))
        add(name, scores)
    title = f"{len(test):,} documents, {config.sentences} sentences each, {config.seeds} seed(s)"
    conclude(run, rows, COLUMNS, title=title, test=jax.tree.map(lambda x: np.asarray(x).tolist(), found))


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
