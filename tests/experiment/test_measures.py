"""Metrics by the source's task, with labels missing."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, losses, metrics, models, objectives, parallel
from jaxkd.experiment import Context, Evaluator, conclude, measures, train_phase
from jaxkd.runs.directory import open_run
from jaxkd.runs.logger import Logger, read_metrics
from jaxkd.runs.retention import Best
from jaxkd.types import Outputs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 6)).astype(np.float32)
NAN = float("nan")


def opened(labels, **options):
    return data.open_source({"image": X, "label": labels}, **options)


def found(source, logits, measure=measures.training_metrics):
    """Values of the metrics of a source's task on all its rows."""
    out, none = Outputs(jnp.asarray(logits, jnp.float32)), Outputs(None)
    batch = {"label": jnp.asarray(data.labels_of(source))}
    return {name: float(metric(out, none, batch).value()) for name, metric in measure(source).items()}


def test_classes_have_an_accuracy_of_two_logits_or_of_one():
    y, z = RNG.integers(0, 2, 24), RNG.standard_normal((24, 1))
    one = found(opened(y), z, measures.evaluation_metrics)
    assert set(one) == {"accuracy", "nll", "ece"}
    assert one["accuracy"] == pytest.approx(np.mean((z[:, 0] > 0) == y))
    assert one["nll"] == pytest.approx(np.mean(np.logaddexp(0, z[:, 0]) - y * z[:, 0]), rel=1e-5)
    two = found(opened(y), np.concatenate([-z / 2, z / 2], axis=1), measures.evaluation_metrics)
    assert one == pytest.approx(two, rel=1e-5)
    assert set(found(opened(y), z)) == {"accuracy"}


def test_missing_classes_count_in_no_metric_and_in_no_number_of_classes(caplog):
    y = np.where(np.arange(24) % 6 == 0, 255, np.arange(24) % 3)
    source = opened(y, ignore=255)
    assert (source.task, source.num_classes, source.ignore) == ("classification", 3, 255)
    assert "4 of the 24 labels of arrays[train] are missing (255): metrics of its task leave them out" in caplog.text
    z, known = RNG.standard_normal((24, 3)), y != 255
    assert found(source, z)["accuracy"] == pytest.approx(np.mean(z.argmax(1)[known] == y[known]))
    with pytest.raises(ValueError, match="or give ignore=-1 if it means none"):
        opened(np.where(known, y, -1))
    with pytest.raises(ValueError, match=r"holds integers but ignore is nan: give the integer"):
        opened(y, ignore=NAN)
    slices = [data.open_source({"image": X, "label": y}, f"train[{part}]", ignore=255) for part in (":50%", "50%:")]
    assert [np.sum(data.labels_of(part) == 255) for part in slices] == [2, 2], "missing ones are drawn in proportion"
    with pytest.raises(ValueError, match="labels of folder:x cannot be missing"):
        data.open_source("folder:x", ignore=-1)


def test_several_labels_have_the_metrics_of_yes_and_no_without_those_that_are_missing():
    y = RNG.integers(-1, 2, (24, 5))
    source, z = opened(y, ignore=-1), RNG.standard_normal((24, 5))
    assert source.task == "multi_label"
    values = found(source, z)
    assert set(values) == set(metrics.BINARY)
    assert values["accuracy"] == pytest.approx(np.mean((z > 0)[y >= 0] == y[y >= 0]))
    assert measures.best_of(source) == Best("validation/nll", "min")


def test_numbers_have_errors_without_those_that_are_missing():
    y = np.where(RNG.random((24, 2)) < 0.3, NAN, RNG.standard_normal((24, 2)))
    source, z = opened(y, ignore=NAN), RNG.standard_normal((24, 2))
    error = (z - y)[~np.isnan(y)]
    expected = {"mae": np.abs(error).mean(), "rmse": np.sqrt(np.square(error).mean())}
    assert found(source, z) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"give ignore=float\('nan'\) if NaN means that there is no label"):
        opened(y)


def test_tokens_ignore_their_padding_and_other_tasks_have_no_metric():
    source = dataclasses.replace(opened(np.arange(24) % 3), task="tokens", ignore=-100)
    y, z = RNG.integers(0, 3, (4, 5)), RNG.standard_normal((4, 5, 3))
    y[:, 3:] = -100
    (metric,) = measures.training_metrics(source).values()
    value = metric(Outputs(jnp.asarray(z, jnp.float32)), Outputs(None), {"label": jnp.asarray(y)}).value()
    assert float(value) == pytest.approx(np.mean(z.argmax(-1)[:, :3] == y[:, :3]))
    for task in ("boxes", "ranking", "unlabelled"):
        other = dataclasses.replace(source, task=task, ignore=None)
        assert (measures.training_metrics(other), measures.best_of(other)) == ({}, None)
        with pytest.raises(ValueError, match=r"but class numbers .* are needed here"):
            data.check_task(other, "classification")
    dummy = opened(np.zeros(24, int))  # beside targets of another name
    assert (measures.evaluation_metrics(dummy), measures.best_of(dummy)) == ({}, None)
    with pytest.raises(ValueError, match=r"the student has no logits, .* give `measured={}`"):
        metric(Outputs(None), Outputs(None), {})


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "run"


def test_a_regression_with_missing_labels_is_trained_without_a_word_of_accuracy(tmp_path, capsys):
    y = np.where(np.arange(24) % 4 == 0, NAN, X[:, 0])
    source, model = opened(y, ignore=NAN), models.mlp(1, hidden=(4,))
    term = objectives.from_labels(losses.squared_error, ignore=NAN)
    with open_run(Config(), root=tmp_path) as run, Logger(run.path, tensorboard=False) as logger:
        context = Context(run, logger, parallel.with_jit(), 0, 8, dict, dict)
        evaluator = Evaluator(context, model)
        train_phase(
            context,
            "student",
            source,
            student=model,
            objective=(term, optax.adam(1e-2)),
            steps=4,
            key=jax.random.key(0),
            validation=(evaluator, source),
            every=2,
            log_every=1,
        )
        conclude(run, [{"network": "student"}], {"network": "network"}, title="regression")
        lines = read_metrics(run.path)
    assert {*lines[0]} >= {"loss", "mae", "rmse"}
    validation = [line["mae"] for line in lines if line["split"] == "validation"]
    summary = json.loads((run.path / "summary.json").read_text())["validation"]["student"]
    assert (summary["metric"], summary["best"]) == ("mae", pytest.approx(min(validation)))
    printed = capsys.readouterr().out
    assert "mae 0." in printed or "mae 1." in printed
    assert "accuracy" not in printed + json.dumps(lines) + json.dumps(summary)


def test_subsets_leave_missing_classes_out():
    y = np.where(np.arange(24) % 6 == 0, 255, np.arange(24) % 3)
    source = opened(y, ignore=255)
    few, two = data.few_labels(source, 2), data.of_classes(source, (2, 0))
    assert np.bincount(data.labels_of(few)).tolist() == [2, 2, 2]
    assert len(two) == np.isin(y, (0, 2)).sum()
    assert set(data.labels_of(two).tolist()) == {0, 1}
    with pytest.raises(ValueError, match=r"ignores the label 255 but .* ignores None: give the same one"):
        data.join_tasks(old=source, new=opened(np.arange(24) % 3))
