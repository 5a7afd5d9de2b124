"""Trials of text classifiers: their floors, and trainings over seeds that end in rows of one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from jaxkd import data, deploy, metrics, models, reports
from jaxkd.data.splits import say
from jaxkd.data.texts import Texts
from jaxkd.experiment.baselines import logistic_regression, tf_idf
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import Evaluator, Predict, predictor
from jaxkd.experiment.kept import kept
from jaxkd.experiment.text_costs import MEASURES, compared, costs, network_costs, row, typical_examples
from jaxkd.experiment.texts import Splits
from jaxkd.experiment.trainer import variables_of
from jaxkd.experiment.trials import train_seeds
from jaxkd.train import students
from jaxkd.types import Model, Term, TrainState, Variables


class Trials(NamedTuple):
    """Trainings on one set of texts, and the table that they end in.

    Attributes:
      context: The context of the trainings.
      sources: Tokens of the splits "train", "validation" and "test"; with `teacher_logits` once there is a teacher.
      seeds: Students of each kind.
      rows: Rows of the table so far.
    """

    context: Context
    sources: dict[str, data.Source]
    seeds: int
    rows: list[Mapping[str, str]]

    def fit(
        self,
        name: str,
        source: data.Source,
        model: Model,
        term: Term,
        make_optimizer: Callable[[int], optax.GradientTransformation],
        epochs: float,
        *,
        seeds: int | None = None,
        **options: Any,
    ) -> tuple[TrainState, Evaluator]:
        """Trains one network, or one for each seed together, evaluated on the validation split at the end.

        Args:
          name: The phase's name.
          source: Training data.
          model: The network.
          term: The objective.
          make_optimizer: Number of updates -> the optax transformation.
          epochs: Number of updates, in passes over the labelled texts, so that all networks have as many.
          seeds: Number of students; None for a single network.
          **options: Further ones of `train_seeds`.

        Returns:
          The state after the last step, and the evaluator.
        """
        labelled = self.sources["train"]
        steps = max(1, round(epochs * data.steps_per_epoch(labelled, self.context.batch_of(labelled))))
        measures = {"accuracy": metrics.accuracy} if seeds is None else MEASURES
        teacher = None if seeds is None else models.cached()
        evaluator = Evaluator(self.context, model, measures, stacked=seeds is not None, teacher=teacher)
        state = train_seeds(
            self.context,
            name,
            source,
            model,
            term,
            make_optimizer(steps),
            steps,
            seeds=seeds,
            validation=(evaluator, self.sources["validation"]),
            **options,
        )
        return state, evaluator

    def add(self, name: str, source: data.Source, model: Model, *args: Any, kind: str, **options: Any) -> None:
        """Trains students that differ in their seeds, evaluates them on the test split, and adds their row.

        Args:
          name: Name of the phase and of the row.
          source: As for `fit`.
          model: As for `fit`.
          *args: As for `fit`.
          kind: Name of the architecture, whose costs are measured once.
          **options: As for `fit`.
        """
        state, evaluator = self.fit(name, source, model, *args, seeds=self.seeds, **options)
        found = metrics.values(evaluator(state, self.sources["test"]))
        run, one = self.context.run, students.pick_student(variables_of(state), 0)
        spent = kept(run, f"costs-{kind}", lambda: network_costs(model, one, self.sources["test"]))
        self.rows.append(row(name, reports.without_lost(found, run.lost[name]), spent))

    def outputs(self, name: str, predict: Predict, source: data.Source) -> np.ndarray:
        """Computes a network's outputs once.

        Args:
          name: Their name in the run's folder.
          predict: The network's `predictor`.
          source: Tokens of N texts.

        Returns:
          Logits [N, K], or vectors [N, D].
        """
        return kept(self.context.run, name, lambda: {"logits": predict(source)[1]})["logits"]

    def floors(self, splits: Splits, encoder: Model, variables: Variables) -> dict[str, dict[str, Any]]:
        """Trains the two logistic regressions, on words and on the vectors of a frozen encoder.

        Args:
          splits: Texts.
          encoder: The encoder, whose logits are vectors [B, D].
          variables: Its variables.

        Returns:
          Name -> `logits` on the test split and the entries of `costs`.
        """
        predict = predictor(self.context, encoder)(variables)
        vectors = [self.outputs(f"vectors-{name}", predict, source) for name, source in self.sources.items()]
        run, test = self.context.run, self.sources["test"]
        return {
            "tf-idf + logistic regression": kept(run, "tf-idf", lambda: on_words(splits)),
            "frozen encoder + logistic regression": kept(
                run, "frozen", lambda: on_vectors(splits, vectors, encoder, variables, test)
            ),
        }

    def compare(
        self, floors: Mapping[str, Mapping[str, Any]], model: Model, variables: Variables, labels: Any
    ) -> Predict:
        """Adds the rows of the floors and of the teacher, and the teacher's logits to the sources.

        Args:
          floors: As `floors` gives them.
          model: The teacher.
          variables: Its variables.
          labels: Classes of the test split [N].

        Returns:
          The teacher's `predictor`.
        """
        predict = predictor(self.context, model)(variables)
        for name, source in self.sources.items():
            logits = self.outputs(f"answers-{name}", predict, source)
            self.sources[name] = data.with_fields(source, teacher_logits=logits)
        test = self.sources["test"]
        spent = kept(self.context.run, "costs-teacher", lambda: network_costs(model, variables, test))
        own = {"teacher": {"logits": self.outputs("answers-test", predict, test), **spent}}
        for name, found in {**floors, **own}.items():
            self.rows.append(row(name, compared(found["logits"], own["teacher"]["logits"], labels), found))
        return predict


def classes_of(texts: Texts) -> int:
    """Number of classes of texts that a classifier is trained on.

    Args:
      texts: The training texts.

    Returns:
      K.

    Raises:
      ValueError: If their labels are numbers to regress on.
    """
    if texts.task != "classification":
        raise ValueError(
            f"{texts.name} has labels for {texts.task}, not classes: name a field of words or whole numbers by "
            "--label-field."
        )
    return len(texts.class_names)


def with_sure_texts(
    source: data.Source,
    texts: Texts,
    more: Texts,
    logits: np.ndarray,
    threshold: float,
    tokenise: Callable[[Texts], data.Source],
) -> data.Source:
    """Adds texts without labels of which a teacher is sure, as many of each class; how many are taken is logged.

    Args:
      source: Tokens of the labelled texts, with `teacher_logits`.
      texts: The labelled texts.
      more: Texts without labels [N].
      logits: The teacher's logits of these [N, K].
      threshold: Least probability of its class.
      tokenise: Texts -> their tokens.

    Returns:
      Tokens of all of them, with `teacher_logits`; the source as it is if the teacher is sure of no text of a class.
    """
    try:
        sure, labels = data.pseudo_labels(logits, threshold=threshold)
    except ValueError as error:
        say(f"the students learn from no text without a label: {error}")
        return source
    say(f"the students learn also from {len(sure)} of the {len(more)} texts without labels, as many of each class.")
    union = tokenise(data.add_texts(texts, more.take(sure), labels))
    own = source.read(np.arange(source.size))["teacher_logits"]
    return data.with_fields(union, teacher_logits=np.concatenate([own, logits[sure]]))


def on_words(splits: Splits) -> dict[str, Any]:
    """Trains logistic regression on tf-idf weights.

    Args:
      splits: Texts.

    Returns:
      As for `costs`, and `logits` [N, K] on the test split.
    """
    train, validation, test = splits
    found = tf_idf(
        train.texts, np.asarray(train.labels), (validation.texts, np.asarray(validation.labels)), len(train.class_names)
    )
    spent = costs(lambda text: found.logits([text]), test.texts[:64], found.parameters, found.bytes)
    return {"logits": found.logits(test.texts), **spent}


def on_vectors(
    splits: Splits, vectors: Sequence[np.ndarray], model: Model, variables: Variables, test: data.Source
) -> dict[str, Any]:
    """Trains logistic regression on the vectors of a frozen encoder.

    Args:
      splits: Texts.
      vectors: The encoder's vectors [N, D] of each of them.
      model: The encoder.
      variables: Its variables.
      test: Tokens of the test split.

    Returns:
      As for `costs`, and `logits` [N, K] on the test split.
    """
    train, validation, _ = splits
    held_out = vectors[1], np.asarray(validation.labels)
    found = logistic_regression(vectors[0], np.asarray(train.labels), held_out, len(train.class_names))
    answer, size = deploy.answering(model, variables), deploy.parameter_bytes(variables) + found.bytes
    parameters = models.count_parameters(variables) + found.parameters
    spent = costs(lambda row: found.logits(answer(row)), typical_examples(test), parameters, size)
    return {"logits": found.logits(vectors[2]), **spent}
