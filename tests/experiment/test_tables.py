"""Tables: figures of logits are scikit-learn's of their probabilities, teachers are asked, kinds suit the task."""

import jax
import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics

from jaxkd import data, models
from jaxkd.data.tabular import open_table
from jaxkd.experiment.fields import tables
from jaxkd.experiment.fields.tables import TableConfig

SETS = {name: open_table(f"sklearn:{name}") for name in ("breast_cancer", "wine", "diabetes")}
rng = np.random.default_rng(0)


@pytest.mark.parametrize("name", SETS)
def test_figures_are_those_of_scikit_learn(name):
    table = SETS[name]
    y = data.labels_of(table.test)
    z = rng.normal(size=(len(y), tables.outputs_of(table)))
    found = tables.scores(table, tables.probabilities(table, z))
    if name == "diabetes":
        truth, guess = y * table.spread + table.center, z[:, 0] * table.spread + table.center
        expected = {"rmse": metrics.root_mean_squared_error(truth, guess), "r2": metrics.r2_score(truth, guess)}
    else:
        two = z.shape[1] == 1
        p = np.concatenate([1 - expit(z), expit(z)], axis=1) if two else softmax(z, axis=1)
        each = [metrics.roc_auc_score(y == k, p[:, k]) for k in range(p.shape[1])]
        expected = {"auc": np.mean(each), "log_loss": metrics.log_loss(y, p)}
        expected["accuracy"] = metrics.accuracy_score(y, p.argmax(axis=1))
    assert found == pytest.approx(expected, rel=1e-6)


def test_networks_of_the_first_tutorials_have_their_sizes():
    for hidden, count in (((128, 128), 18_049), ((64, 64), 4_929)):
        network = models.table_mlp(1, hidden=hidden)
        made = jax.eval_shape(network.init, jax.random.key(0), {"columns": np.zeros((2, 10), np.float32)})
        assert models.count_parameters(made) == count


def test_a_network_is_asked_as_an_estimator_is():
    table = SETS["breast_cancer"]
    network = models.table_mlp(1, hidden=(4,))
    rows = table.test.read(np.arange(8))
    shapes = jax.eval_shape(network.init, jax.random.key(0), {"columns": rows["columns"]})
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    logits = network.apply(variables, rows, None, False)[0].logits
    estimator = tables.NetworkEstimator(network, variables, table)
    np.testing.assert_allclose(estimator.predict_proba(rows["columns"])[:, 1:], expit(np.asarray(logits)), rtol=1e-5)
    np.testing.assert_array_equal(estimator.predict(rows["columns"]), np.asarray(logits)[:, 0] > 0)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("wine", ["alone", "soft", "soft-mixed", "hard-mixed"]),
        ("diabetes", ["alone", "soft", "soft-mixed", "bounded"]),
    ],
)
def test_kinds_suit_the_task(name, kinds):
    assert list(tables.make_kinds(TableConfig(), SETS[name])) == kinds


def test_flags_are_chosen_by_rows_that_are_not_the_test_rows():
    tested, chosen = (TableConfig(figures=figures).table("sklearn:wine", 1) for figures in ("test", "validation"))
    np.testing.assert_array_equal(chosen.test.ids, tested.validation.ids)
    assert not np.intersect1d(tested.test.ids, chosen.test.ids).size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validation_share": 0.5, "test_share": 0.5}, "leave a split without rows"),
        ({"test_share": 0.0}, "leave a split without rows"),
        ({"sources": ("csv:a/x.csv", "csv:b/x.csv")}, "two tables named 'x'"),
        ({"alpha": 1.5}, "--alpha is 1.5"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        TableConfig(**options).check()
