"""Black boxes: any teacher's answers become the field that cached teachers read, asked once, and checked row by row."""

import dataclasses

import numpy as np
import pytest
from foreign_files import litert_linear, onnx_linear
from scipy.special import log_softmax, softmax

from jaxkd import cache, data, models
from jaxkd.cache import network_files
from jaxkd.data.source import Source
from jaxkd.types import Variables

SIZE, K = 40, 3
rng = np.random.default_rng(0)
X, LABEL = rng.normal(size=(SIZE, 5)).astype(np.float32), (np.arange(SIZE) % K).astype(np.int32)
W, B = rng.normal(size=(5, K)).astype(np.float32), rng.normal(size=K).astype(np.float32)
Z = X @ W + B
ALL = np.arange(SIZE)


def rows_of(label=LABEL, x=X, **options):
    """A source of vectors; `start` is the id of its first row."""
    start = options.get("start", 0)

    def read(rows):
        return {"x": x[rows], "label": label[rows], "id": (rows + start).astype(np.int32)}

    return Source("rows", len(x), options.pop("num_classes", K), None, read, **options)


SOURCE = rows_of()


def told(source):
    return source.read(ALL[: source.size])["teacher_logits"]


def linear(batch):
    return batch["x"] @ W + B


def test_a_function_is_asked_once_about_each_example(tmp_path):
    asked = []

    def teacher(batch):
        asked.extend(batch["id"].tolist())
        return linear(batch)

    given = {"version": "1", "batch_size": 8, "rows": 16}
    first = cache.black_box(SOURCE, teacher, tmp_path, **given)
    assert sorted(asked) == sorted([0, *range(SIZE)]), "the first example also tells the shape"
    asked.clear()
    again = cache.black_box(SOURCE, teacher, tmp_path, **given)
    assert asked == []
    for source in (first, again):
        np.testing.assert_allclose(told(source), Z, rtol=1e-6)
        assert source.views is None
        assert source.made_with["black box"] == "function 1"
    with pytest.raises(ValueError, match="were made with black box = function 1, not function 2"):
        cache.black_box(SOURCE, teacher, tmp_path, version="2")
    with pytest.raises(ValueError, match='give it a name and number of your own, such as version="labeller 3"'):
        cache.black_box(SOURCE, teacher, tmp_path)


def test_a_killed_run_goes_on(tmp_path):
    calls = []

    def dies(batch):
        calls.append(len(batch["id"]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return linear(batch)

    given = {"version": "1", "batch_size": 8, "rows": 8}
    with pytest.raises(KeyboardInterrupt):
        cache.black_box(SOURCE, dies, tmp_path, **given)
    joined = cache.black_box(SOURCE, dies, tmp_path, **given)
    assert calls == [1, 8, 8, 8, *[8] * 3], "two of five shards were there"
    np.testing.assert_allclose(told(joined), Z, rtol=1e-6)


def test_targets_of_augmented_views_are_those_of_the_views(tmp_path):
    def prepare(batch):
        return {**batch, "x": batch["x"] * (1.0 + batch["view"][:, None])}

    joined = cache.black_box(SOURCE, linear, tmp_path, version="1", prepare=prepare, views=2)
    assert joined.views == 2
    for view in (0, 1):
        found = joined.targets(ALL, view)["teacher_logits"]
        np.testing.assert_allclose(found, X * (1 + view) @ W + B, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="views is 2: give at least 1, together with the prepare="):
        cache.black_box(SOURCE, linear, tmp_path, version="1", views=2)


def test_texts_are_asked_about_and_known_again(tmp_path):
    texts = np.array([f"text {i}" for i in range(SIZE)])
    source = dataclasses.replace(SOURCE, read=lambda rows: {"text": texts[rows], "id": rows.astype(np.int32)})

    def teacher(batch):
        return np.array([[len(t), int(t[5:]), 0] for t in batch["text"]], float)

    joined = cache.black_box(source, teacher, tmp_path, version="1")
    assert told(joined)[12].tolist() == [7, 12, 0]
    texts[0] = "another"
    with pytest.raises(ValueError, match="`text` of example 0 in view 0 differs"):
        cache.black_box(source, teacher, tmp_path, version="1")


@pytest.mark.parametrize("batch", ["batch", 16], ids=["any batch", "batches of 16"])
def test_an_onnx_file_answers(tmp_path, batch):
    pytest.importorskip("onnxruntime", reason='pip install "jaxkd[onnx]"')
    file = tmp_path / "teacher.onnx"
    file.write_bytes(onnx_linear(W, B, batch=batch))
    joined = cache.black_box(SOURCE, f"onnx:{file}", tmp_path / "targets")
    np.testing.assert_allclose(told(joined), Z, rtol=1e-5, atol=1e-6)
    file.write_bytes(onnx_linear(2 * W, B, batch=batch))
    with pytest.raises(ValueError, match="were made with black box = onnx"):
        cache.black_box(SOURCE, f"onnx:{file}", tmp_path / "targets")


def test_an_onnx_file_takes_pictures_in_its_own_layout_and_dtype(tmp_path):
    pytest.importorskip("onnxruntime", reason='pip install "jaxkd[onnx]"')
    images = rng.integers(0, 256, (SIZE, 4, 4, 2), dtype=np.uint8)
    source = data.open_source({"image": images, "label": LABEL})
    kernel, file = rng.normal(size=(32, K)), tmp_path / "teacher.onnx"
    file.write_bytes(onnx_linear(kernel, B, softmax=True, sides=(2, 4, 4), dtype="float64", name="pixel_values"))
    spec, given = f"onnx:{file}", {"prepare": lambda batch: {**batch, "image": batch["image"] / 255.0}}
    joined = cache.black_box(source, spec, tmp_path / "a", channels_first=True, gives="probabilities", **given)
    flat = np.moveaxis(images / np.float32(255), -1, 1).reshape(SIZE, -1)
    np.testing.assert_allclose(told(joined), log_softmax(flat @ kernel + B, axis=1), rtol=1e-4, atol=1e-5)
    for said, options in {
        r"has shape \[any, 2, 4, 4\] but the field 'image' has \[1, 4, 4, 2\]: say channels_first=True": given,
        'are probabilities .* say gives="probabilities"': {**given, "channels_first": True},
        "holds bytes 0..255, whose scale has to be chosen: give prepare=": {"channels_first": True},
        "inputs= names the inputs a but those of .* are pixel_values": {**given, "inputs": {"a": "image"}},
        "the batch has no field 'picture'": {**given, "inputs": "picture"},
        "has no output of that name .*name one of p": {**given, "output": "z"},
    }.items():
        with pytest.raises(ValueError, match=said):
            cache.black_box(source, spec, tmp_path / "b", **options)


@pytest.mark.parametrize("batch", [1, 16])
def test_a_litert_file_answers(tmp_path, batch):
    pytest.importorskip("ai_edge_litert.interpreter", reason='pip install "jaxkd[litert]"')
    file = tmp_path / "teacher.tflite"
    file.write_bytes(litert_linear(W, B, batch=batch))
    joined = cache.black_box(SOURCE, f"litert:{file}", tmp_path / "targets")
    np.testing.assert_allclose(told(joined), Z, rtol=1e-5, atol=1e-6)


def test_quantised_inputs_and_outputs_stand_for_numbers():
    given, x = {"quantization": (0.5, 3), "dtype": np.int8}, np.array([0.0, -1.0, 0.6, 1e4], np.float32)
    held = network_files._quantised(given, x)
    np.testing.assert_array_equal(held, np.array([3, 1, 4, 127], np.int8))
    np.testing.assert_array_equal(network_files._numbers(given, held), [0, -1, 0.5, 62])
    plain = {"quantization": (0.0, 0), "dtype": np.float32}
    np.testing.assert_array_equal(network_files._numbers(plain, network_files._quantised(plain, x)), x)


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxruntime"), ("litert", "ai_edge_litert.interpreter")])
def test_files_that_are_no_networks_are_refused(tmp_path, kind, package):
    with pytest.raises(ValueError, match=r"missing\.onnx does not exist"):
        cache.black_box(SOURCE, f"{kind}:{tmp_path}/missing.onnx", tmp_path / "targets")
    pytest.importorskip(package, reason=f'pip install "jaxkd[{kind}]"')
    (tmp_path / "torn").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"torn cannot be opened as an? (ONNX|LiteRT) file .*: export it anew"):
        cache.black_box(SOURCE, f"{kind}:{tmp_path}/torn", tmp_path / "targets")


class Fitted:
    """What an estimator of scikit-learn has; `fit` was called elsewhere."""

    n_features_in_ = 5

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def get_params(self):
        return {"depth": 3}

    def predict(self, X):
        return self.classes_[np.argmax(X @ W + B, axis=1)] if hasattr(self, "classes_") else (X @ W)[:, 0]


class Probable(Fitted):
    def predict_proba(self, X):
        return softmax(X @ W + B, axis=1)[:, : len(self.classes_)] + self.off


def test_estimators_give_the_most_that_they_can(tmp_path):
    order = np.array(["c", "a", "b"])
    named = dataclasses.replace(SOURCE, class_names=("a", "b", "c"))
    p = softmax(Z, axis=1)
    found = told(cache.black_box(named, Probable(classes_=order, off=0.0), tmp_path / "p"))
    np.testing.assert_allclose(np.exp(found), p[:, [1, 2, 0]], rtol=1e-5, atol=2e-6)
    found = told(cache.black_box(named, Fitted(classes_=order), tmp_path / "hard"))
    np.testing.assert_allclose(np.exp(found).max(axis=1), 0.99, rtol=1e-5)
    assert (found.argmax(axis=1) == np.array([2, 0, 1])[Z.argmax(axis=1)]).all()
    numbers = rows_of(label=X[:, 0], task="regression", num_classes=1)
    np.testing.assert_allclose(told(cache.black_box(numbers, Fitted(), tmp_path / "n"))[:, 0], X @ W[:, 0], rtol=1e-5)


def test_estimators_are_known_by_their_answers(tmp_path):
    cache.black_box(SOURCE, Probable(classes_=np.arange(K), off=0.0), tmp_path)
    cache.black_box(SOURCE, Probable(classes_=np.arange(K), off=0.0), tmp_path)
    with pytest.raises(ValueError, match="were made with black box"):
        cache.black_box(SOURCE, Probable(classes_=np.arange(K), off=1e-4), tmp_path)


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (Probable(classes_=np.array(["a", "b", "x"]), off=0.0), "has the class 'a', which rows does not have"),
        (Probable(classes_=np.array([0, 1, 3]), off=0.0), "has the class 3 but the source has 3 classes"),
        (Probable(classes_=np.arange(K), off=0.1), "sum to 1.3, not to 1 .as for 1 of 1 examples"),
        (Fitted(classes_=np.arange(K), n_features_in_=4), "was fitted to 4 columns but the fields x have 5"),
        (Probable(classes_=np.arange(K)), "Probable.predict_proba failed .AttributeError"),
    ],
    ids=["names", "numbers", "sums", "columns", "not fitted"],
)
def test_estimators_that_do_not_fit_are_refused(tmp_path, estimator, said):
    with pytest.raises(ValueError, match=said):
        cache.black_box(SOURCE, estimator, tmp_path)


def test_an_estimator_that_knows_fewer_classes_gives_the_rest_the_least_probability(tmp_path):
    two = Probable(classes_=np.array([2, 0]), off=0.0)
    two.predict_proba = lambda X: np.tile([[0.25, 0.75]], (len(X), 1))
    found = told(cache.black_box(SOURCE, two, tmp_path))
    np.testing.assert_allclose(np.exp(found[0]), [0.75, 1e-6, 0.25], rtol=1e-5)


def csv(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return f"csv:{path}"


P = np.round(softmax(Z, axis=1), 4)
ORDER = rng.permutation(SIZE)
NAMED = dataclasses.replace(SOURCE, class_names=("a", "b", "c"))
FORMS = {
    "numbered": ("id,class2,class0,class1", [(i, P[i, 2], P[i, 0], P[i, 1]) for i in ORDER]),
    "named": ("c,id,a,b", [(P[i, 2], i, P[i, 0], P[i, 1]) for i in ORDER]),
}


@pytest.mark.parametrize("form", FORMS)
def test_csv_of_probabilities_is_joined_by_id_and_class(tmp_path, form):
    joined = cache.black_box(NAMED, csv(tmp_path / "soft.csv", *FORMS[form]))
    np.testing.assert_allclose(told(joined), np.log(P / P.sum(axis=1, keepdims=True)), rtol=1e-5, atol=1e-5)
    few = cache.black_box(dataclasses.replace(NAMED, size=8), f"csv:{tmp_path}/soft.csv")
    np.testing.assert_array_equal(told(few), told(joined)[:8])


@pytest.mark.parametrize("labels", [LABEL, np.array(list("abc"))[LABEL]], ids=["numbers", "names"])
def test_labels_alone_are_a_teacher(tmp_path, labels):
    joined = cache.black_box(NAMED, csv(tmp_path / "hard.csv", "id,label", [(i, labels[i]) for i in ORDER]))
    np.testing.assert_array_equal(told(joined).argmax(axis=1), LABEL)
    np.testing.assert_allclose(np.exp(told(joined)).max(axis=1), 0.99, rtol=1e-6)


def test_the_top_classes_alone_are_a_teacher(tmp_path):
    ids = np.argsort(-P, axis=1)[:, :2]
    p = np.take_along_axis(P, ids, axis=1)
    np.savez(tmp_path / "top.npz", id=ORDER, top_ids=ids[ORDER], top_probabilities=p[ORDER])
    header = "id,top_id1,top_probability1,top_id2,top_probability2"
    spec = csv(tmp_path / "top.csv", header, [(i, ids[i, 0], p[i, 0], ids[i, 1], p[i, 1]) for i in ORDER])
    one, other = cache.black_box(SOURCE, f"npz:{tmp_path}/top.npz"), cache.black_box(SOURCE, spec)
    np.testing.assert_allclose(told(one), told(other), rtol=1e-4)
    np.testing.assert_allclose(np.exp(told(one)), P, atol=2e-4)
    batch = one.read(ALL)
    np.testing.assert_array_equal(batch["top_ids"], ids)
    whole = np.exp(batch["top_logprobs"]).sum(axis=1) + np.exp(batch["top_tail"])
    np.testing.assert_allclose(whole, 1, rtol=1e-5)
    read = models.cached(num_classes=K).apply(Variables({}, {}), batch, None, False)[0]
    np.testing.assert_allclose(read.logits, told(one), rtol=1e-6)


def test_npz_and_parquet_hold_arrays(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    np.savez(tmp_path / "soft.npz", id=ORDER, logits=Z[ORDER])
    parquet.write_table(arrow.table({"id": ORDER, "logits": Z[ORDER].tolist()}), tmp_path / "soft.parquet")
    for kind in ("npz", "parquet"):
        found = told(cache.black_box(SOURCE, f"{kind}:{tmp_path}/soft.{kind}"))
        np.testing.assert_allclose(found, Z, rtol=1e-6)


def test_one_logit_for_two_classes_and_several_labels_at_once(tmp_path):
    two = rows_of(label=LABEL % 2, num_classes=2)
    p = 1 / (1 + np.exp(-Z[:, 0]))
    rows = [(i, 1 - p[i], p[i]) for i in ORDER]
    joined = cache.black_box(two, csv(tmp_path / "two.csv", "id,0,1", rows), one_logit=True)
    np.testing.assert_allclose(told(joined), Z[:, :1], rtol=1e-3, atol=1e-4)
    asked = cache.black_box(two, lambda batch: p[batch["id"]], tmp_path / "a", version="1", gives="probabilities")
    np.testing.assert_allclose(told(asked)[:, 1] - told(asked)[:, 0], Z[:, 0], rtol=1e-3, atol=1e-4)
    several = rows_of(label=(Z > 0).astype(np.int32), task="multi_label")
    yes = lambda batch: 1 / (1 + np.exp(-linear(batch)))  # noqa: E731
    logits = cache.black_box(several, yes, tmp_path / "b", version="1", gives="probabilities")
    np.testing.assert_allclose(told(logits), Z, rtol=1e-3, atol=1e-4)


def test_numbers_of_a_regressor_stay_numbers(tmp_path):
    numbers = rows_of(label=Z[:, 0], task="regression", num_classes=1)
    joined = cache.black_box(numbers, csv(tmp_path / "n.csv", "id,prediction", [(i, Z[i, 0]) for i in ORDER]))
    np.testing.assert_allclose(told(joined), Z[:, :1], rtol=1e-6)
    with pytest.raises(ValueError, match="gives logits but the task of rows is regression: give numbers"):
        cache.black_box(numbers, linear, tmp_path, version="1", gives="logits")


NORMAL = [(i, *P[i]) for i in range(SIZE)]


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("id,0,1,2", NORMAL[:-2], r"has no soft labels of example 38 of rows \(as of 2 of its 40\)"),
        ("id,0,1,2", [*NORMAL, (3, *P[3])], r"has soft labels of example 3 twice \(as of 1 examples\)"),
        ("id,0,1,2", [*NORMAL[:-1], (39, "nan", 0.5, 0.5)], "is NaN or infinite"),
        ("id,0,1,2", [*NORMAL[:-1], (39, -0.5, 1, 0.5)], 'example 39 is no probability .*say gives="logits"'),
        ("id,0,1,2", [*NORMAL[:-1], (39, 0.1, 0.2, 0.3)], "for example 39 sum to 0.6, not to 1"),
        ("id,0,1,2", [*NORMAL[:-1], (39, "x", 1, 0)], "`0` is 'x', which is no number, in line 41 of"),
        ("id,0,1,2", [*NORMAL[:-1], ("x", 0, 1, 0)], "`id` of .* does not hold whole numbers alone"),
        ("id,0,1,3", NORMAL, "has the class 3 but the source has 3 classes, 0..2"),
        ("id,0,1,dog", NORMAL, "has the class 'dog', which rows does not have"),
        ("number,0,1,2", NORMAL, "has number, 0, 1 and 2: give `id`"),
        ("id,label", [(i, 5) for i in range(SIZE)], "the value 5.0 .* example 0 is none of the 3 classes, 0..2"),
        ("id,top_id1,top_id2", [(i, 0, 1) for i in range(SIZE)], "give top_ids together with top_probabilities"),
        ("id,top_id1,top_probability1", [(i, 3, 0.5) for i in range(SIZE)], "is none of the 3 classes"),
        (
            "id,top_id1,top_probability1,top_id2,top_probability2",
            [(i, 1, 0.5, 1, 0.2) for i in range(SIZE)],
            "occurs twice",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) > 30 else "",
)
def test_soft_labels_that_do_not_fit_are_refused(tmp_path, header, rows, said):
    with pytest.raises(ValueError, match=said):
        cache.black_box(SOURCE, csv(tmp_path / "soft.csv", header, rows))


def test_ids_that_the_source_lacks_are_counted(tmp_path, caplog):
    cache.black_box(SOURCE, csv(tmp_path / "soft.csv", "id,0,1,2", [*NORMAL, (77, *P[0])]))
    assert "has soft labels of 1 examples that rows does not have, such as 77: they are left out" in caplog.text


@pytest.mark.parametrize(
    ("answer", "options", "said"),
    [
        (lambda batch: linear(batch)[:, :2], {}, r"gave outputs of shape \(1, 2\) but the source has 3 classes"),
        (lambda batch: linear(batch) * np.nan, {}, "is NaN or infinite"),
        (lambda batch: "yes", {}, "it should give a row of numbers for each"),
        (lambda batch: linear(batch)[:0], {}, "for 1 examples"),
        (linear, {"gives": "scores"}, "gives is 'scores': say whether"),
        (linear, {"one_logit": True}, "one_logit is for two classes, but rows has 3"),
        (linear, {"smoothing": 0.0}, "smoothing is 0.0"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path, answer, options, said):
    with pytest.raises(ValueError, match=said):
        cache.black_box(SOURCE, answer, tmp_path, version="1", **options)


def test_outputs_for_each_pixel_and_singleton_axes_keep_what_they_mean(tmp_path):
    shape = (SIZE, 2, 2, K)
    dense = rng.normal(size=shape)
    given = {"version": "1", "gives": "probabilities"}
    joined = cache.black_box(SOURCE, lambda batch: softmax(dense[batch["id"]], axis=-1), tmp_path / "a", **given)
    np.testing.assert_allclose(told(joined), log_softmax(dense, axis=-1), rtol=1e-4, atol=1e-5)
    thin = cache.black_box(SOURCE, lambda batch: linear(batch)[:, :, None, None], tmp_path / "b", version="1")
    np.testing.assert_allclose(told(thin), Z, rtol=1e-6)


def test_probabilities_of_yes_that_are_called_logits_are_pointed_at(tmp_path, caplog):
    two = rows_of(label=LABEL % 2, num_classes=2)
    cache.black_box(two, lambda batch: 1 / (1 + np.exp(-linear(batch)[:, 0])), tmp_path / "a", version="1")
    assert 'lie in 0..1: say gives="probabilities" if they are' in caplog.text
    caplog.clear()
    cache.black_box(two, lambda batch: linear(batch)[:, 0], tmp_path / "b", version="1")
    cache.black_box(two, Fitted(classes_=np.array([False, True]), predict=lambda X: X[:, 0] > 0), tmp_path / "c")
    assert "lie in 0..1" not in caplog.text


def test_what_is_no_teacher_is_refused(tmp_path):
    for teacher, path, said in (
        (linear, None, "needs path="),
        ("teacher.onnx", tmp_path, "write one of onnx, litert, tflite, csv"),
        (models.mlp(3), tmp_path, "use experiment.cached_teacher"),
    ):
        with pytest.raises(ValueError, match=said):
            cache.black_box(SOURCE, teacher, path, version="1")


def test_batches_carry_the_answers_to_students_and_evaluations(tmp_path):
    joined = cache.black_box(SOURCE, linear, tmp_path, version="1")
    batch = data.train_batches(joined, 8, seed=0)[0]
    teacher, _ = models.cached().apply(Variables({}, {}), batch, None, False)
    np.testing.assert_allclose(teacher.logits, linear(batch), rtol=1e-6)
    assert data.eval_batches(joined, 8)[0]["teacher_logits"].shape == (8, K)
