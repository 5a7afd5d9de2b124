"""Tables as experiments use them: flags, floors, teachers that are no networks, kinds of students, figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optax

from jaxkd import cache, data, deploy, losses, objectives
from jaxkd.data.tabular import COLUMNS, Table, munge, open_table
from jaxkd.experiment.config import Config
from jaxkd.experiment.context import Context
from jaxkd.experiment.domains import COUNT, FRACTION, POSITIVE, TEMPERATURE, WHOLE
from jaxkd.experiment.flags import DATA, NETWORKS, TRAINING, flag
from jaxkd.experiment.trials import PERCENT, Column
from jaxkd.types import Model, Term, Variables

FIGURES: Mapping[str, Column] = {
    "auc": Column("AUC", digits=4),
    "log_loss": Column("log loss", digits=3),
    "accuracy": Column("accuracy %", PERCENT),
    "rmse": Column("RMSE"),
    "r2": Column("R^2", digits=3),
}
"""Columns of the table: the first three of classes, the others of numbers."""

KINDS = ("alone", "soft", "bounded", "hard-mixed", "soft-mixed")
"""Kinds of students."""


@dataclasses.dataclass(frozen=True)
class TableConfig(Config):
    """Base configuration of an experiment on tables."""

    sources: tuple[str, ...] = flag(
        ("sklearn:breast_cancer", "sklearn:wine", "sklearn:diabetes"),
        "tables: sklearn:NAME, csv:PATH, tsv:PATH or parquet:PATH",
        DATA,
    )
    target: str | None = flag(None, "column to predict; target, label, class or the last if absent", DATA)
    task: Literal["classification", "regression"] | None = flag(
        None, "meaning of the target; by its values if absent", DATA
    )
    categorical: tuple[str, ...] = flag((), "columns of numbers that are categories", DATA)
    ignored: tuple[str, ...] = flag((), "columns to leave out, such as identifiers", DATA)
    validation_share: float = flag(0.2, "share of the rows for choices of your own", DATA, FRACTION)
    test_share: float = flag(0.2, "share of the rows on which each network is evaluated once", DATA, FRACTION)
    figures: Literal["test", "validation"] = flag("test", "rows of the figures: choose flags by validation", DATA)
    mixed: int = flag(1000, "rows mixed from training rows, for the teacher to label", DATA, WHOLE)
    trees: int = flag(150, "boosted trees of the teacher", NETWORKS, COUNT)
    depth: int = flag(2, "levels of a tree", NETWORKS, COUNT)
    tree_rate: float = flag(0.05, "factor of each tree's answer", NETWORKS, POSITIVE)
    hidden: tuple[int, ...] = flag((8, 8), "widths of the student's hidden layers", NETWORKS, COUNT)
    temperature: float = flag(1.0, "temperature T of the soft labels", TRAINING, TEMPERATURE)
    alpha: float = flag(0.5, "weight of the labels; the soft labels have the rest", TRAINING, FRACTION)
    learning_rate: float = flag(0.01, "highest rate of AdamW", TRAINING, POSITIVE)
    weight_decay: float = flag(1e-2, "decay of the weights in AdamW", TRAINING, POSITIVE)
    steps: int = flag(500, "updates of each network", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values before the run's folder is made.

        Raises:
          ValueError: If a value is outside its domain, the shares leave no training rows, or two tables have one name.
        """
        super().check()
        if not 0 < self.validation_share + self.test_share < 1 or not self.validation_share * self.test_share:
            raise ValueError("--validation-share and --test-share leave a split without rows: give less than 1 in all.")
        names = [short_name(spec) for spec in self.sources]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"--sources has two tables named {twice[0]!r}: rename a file, or give them to two runs.")

    def table(self, spec: str, seed: int) -> Table:
        """Opens one table with a split of its own.

        Args:
          spec: The table.
          seed: Seed of the split.

        Returns:
          The table, whose test rows are the validation rows if the figures are to be theirs.
        """
        shares = self.validation_share, self.test_share
        names = {name: tuple(getattr(self, name)) for name in ("categorical", "ignored")}
        table = open_table(spec, target=self.target, task=self.task, fractions=shares, seed=seed, **names)
        return table._replace(test=table.validation) if self.figures == "validation" else table

    def optimizer(self) -> optax.GradientTransformation:
        """Makes the optimizer of all networks: AdamW, whose rate falls along a cosine."""
        rate = optax.cosine_decay_schedule(self.learning_rate, self.steps)
        return optax.adamw(rate, weight_decay=self.weight_decay)


class Answers(NamedTuple):
    """A fitted estimator and its figures on the test split.

    Attributes:
      estimator: The estimator.
      size: What it is made of, for the table.
      scores: Its figures on the test split.
    """

    estimator: Any
    size: str
    scores: Mapping[str, float]


def short_name(spec: str) -> str:
    """Name of a table in rows and phases.

    Args:
      spec: Such as "csv:data/houses.csv", or the name of a split of it.

    Returns:
      Such as "houses".
    """
    return Path(spec.partition(":")[2].removesuffix("[train]")).stem


def outputs_of(table: Table) -> int:
    """Number of outputs of a network for a table: 1 for a number or for two classes, K for more."""
    return 1 if table.train.num_classes < 3 else table.train.num_classes


def own_rows(table: Table) -> data.Source:
    """The training rows, all of which have a label."""
    return data.with_fields(table.train, labelled=np.ones(table.train.size, bool))


def fit_linear(table: Table) -> Answers:
    """Fits logistic regression, or ridge regression to numbers, whose strength is chosen by leaving out one row each.

    Args:
      table: The table.

    Returns:
      The floor.
    """
    from sklearn.linear_model import LogisticRegression, RidgeCV

    own = _rows(table.train)
    if table.train.task == "regression":
        found = RidgeCV(np.logspace(-2, 3, 11)).fit(own[COLUMNS].astype(np.float64), own["label"])
    else:
        found = LogisticRegression(C=0.1, max_iter=1000).fit(own[COLUMNS].astype(np.float64), own["label"])
    return _answers(found, f"{found.coef_.size + np.size(found.intercept_)}", table)


def fit_trees(table: Table, config: TableConfig, seed: int) -> Answers:
    """Fits gradient-boosted trees of scikit-learn, each to half of the rows.

    Args:
      table: The table.
      config: Number, depth and rate of the trees.
      seed: Seed of the halves.

    Returns:
      The teacher.
    """
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    kind = GradientBoostingRegressor if table.train.task == "regression" else GradientBoostingClassifier
    options = {"n_estimators": config.trees, "max_depth": config.depth, "learning_rate": config.tree_rate}
    own = _rows(table.train)
    found = kind(**options, subsample=0.5, random_state=seed).fit(own[COLUMNS].astype(np.float64), own["label"])
    return _answers(found, f"{found.estimators_.size} trees", table)


def scores(table: Table, outputs: np.ndarray) -> dict[str, float]:
    """Computes the figures of a network or estimator on the test split, by scikit-learn.

    Args:
      table: The table.
      outputs: Probabilities [N, K] of the rows, or standardised numbers [N].

    Returns:
      `auc` (of more than two classes, one against the rest, averaged), `log_loss` in nats, `accuracy` in 0..1; or
      `rmse` in units of the target and `r2`.
    """
    from sklearn import metrics

    labels = data.labels_of(table.test)
    outputs = np.asarray(outputs, np.float64)
    if table.test.task == "regression":
        error = metrics.mean_squared_error(labels, outputs.reshape(-1))
        return {"rmse": table.spread * float(error) ** 0.5, "r2": float(metrics.r2_score(labels, outputs.reshape(-1)))}
    p = outputs / outputs.sum(axis=1, keepdims=True)
    K = p.shape[1]
    area = metrics.roc_auc_score(labels, p[:, 1] if K == 2 else p, multi_class="ovr")
    loss = metrics.log_loss(labels, p, labels=np.arange(K))
    return {"auc": float(area), "log_loss": float(loss), "accuracy": float((p.argmax(axis=1) == labels).mean())}


def probabilities(table: Table, logits: np.ndarray) -> np.ndarray:
    """Probabilities of a network's logits.

    Args:
      table: The table.
      logits: [N, 1] of two classes, [N, K] of more, or numbers [N, 1].

    Returns:
      [N, K], or the numbers [N].
    """
    z = np.asarray(logits, np.float64)
    if table.train.task == "regression":
        return z[:, 0]
    z = np.concatenate([0 * z, z], axis=1) if z.shape[1] == 1 else z
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def make_kinds(config: TableConfig, table: Table) -> dict[str, Term]:
    """Makes the terms of all kinds of students that suit a table.

    Args:
      config: Temperature and weights.
      table: The table.

    Returns:
      Kind -> term.
    """
    numbers = table.train.task == "regression"
    binary = not numbers and table.train.num_classes == 2
    loss = losses.squared_error if numbers else losses.binary_cross_entropy if binary else losses.cross_entropy
    label = objectives.from_labels(loss, where="labelled")
    if numbers:
        soft = objectives.from_logits(losses.logits_mse)
    else:
        soft = objectives.from_logits(losses.binary_kd if binary else losses.kd, temperature=config.temperature)
    both = objectives.weighted(label=(config.alpha, label), soft=(1 - config.alpha, soft))
    found = {"alone": label, "soft": both, "soft-mixed": both}
    if not numbers:
        return found | {"hard-mixed": both}
    paths = "student.logits", "teacher.logits", "batch.label"
    bounded = objectives.from_outputs(losses.teacher_bounded, *paths, where="labelled")
    return found | {"bounded": objectives.weighted(label=(1.0, label), bounded=(0.5, bounded))}


class NetworkEstimator:
    """A trained network with the methods of an estimator, as a black box.

    Args:
      model: The network, which reads `columns`.
      variables: Its variables.
      table: The table that it was trained on.
    """

    def __init__(self, model: Model, variables: Variables, table: Table) -> None:
        self._answer, self._table = deploy.answering(model, variables), table
        if table.train.task == "classification":
            self.classes_ = np.arange(table.train.num_classes)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities [N, K] of rows [N, D]; numbers [N] of a regression."""
        return probabilities(self._table, self._answer({COLUMNS: np.asarray(X, np.float32)}))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Classes [N] or numbers [N] of rows [N, D]."""
        outputs = self.predict_proba(X)
        return outputs.argmax(axis=1) if outputs.ndim > 1 else outputs


def taught_sources(
    context: Context, table: Table, teacher: Any, config: TableConfig, kinds: Sequence[str], seed: int
) -> dict[str, data.Source]:
    """Joins a teacher to the training rows, and to these and mixed ones.

    Args:
      context: The context, in whose run's folder the answers are kept.
      table: The table.
      teacher: A fitted estimator.
      config: Number of mixed rows.
      kinds: Kinds of students that are wanted.
      seed: Seed of the split and of the mixed rows.

    Returns:
      Kind of students -> their training data.
    """
    own, more = own_rows(table), munge(table.train, table.encodings, config.mixed, seed=seed)
    numbers, two = table.train.task == "regression", table.train.num_classes == 2
    context.run.settle()

    def ask(source: data.Source, what: str, gives: Any = None) -> data.Source:
        folder = context.run.path / "targets" / f"{short_name(table.train.name)}-{what}-{seed}"
        return cache.black_box(source, teacher, folder, inputs=COLUMNS, one_logit=two, gives=gives)

    wanted = {"soft": own, "bounded": own} if numbers else {"soft": own, "hard-mixed": more}
    wanted |= {"soft-mixed": more}
    gives = {"hard-mixed": "classes"}
    return {kind: ask(source, kind, gives.get(kind)) for kind, source in wanted.items() if kind in kinds}


def _rows(source: data.Source) -> dict[str, np.ndarray]:
    """All rows of a source."""
    return source.read(np.arange(source.size))


def _answers(estimator: Any, size: str, table: Table) -> Answers:
    """An estimator and its figures."""
    x = _rows(table.test)[COLUMNS].astype(np.float64)
    outputs = estimator.predict(x) if table.test.task == "regression" else estimator.predict_proba(x)
    return Answers(estimator, size, scores(table, outputs))
