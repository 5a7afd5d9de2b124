"""Tables: typed columns, encoded by the training rows alone, split in proportion; what cannot be used is said."""

import numpy as np
import pytest
from sklearn import datasets

from jaxkd import data
from jaxkd.data.tabular import open_table

rng = np.random.default_rng(0)
N = 60
SIZE, COLOUR = rng.normal(10, 3, N).round(2), rng.choice(["red", "green", "blue"], N)
PRICE = (2 * SIZE + (COLOUR == "red")).round(2)


def write(path, **columns):
    """A CSV file of columns of N values each."""
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return f"csv:{path}"


def all_rows(source):
    return source.read(np.arange(source.size))


def test_bundled_sets_are_standardised_by_the_training_rows_and_split_by_class():
    table = open_table("sklearn:breast_cancer", seed=3)
    found, given = datasets.load_breast_cancer(), [all_rows(source) for source in table[:3]]
    ids = np.concatenate([rows["id"] for rows in given])
    assert sorted(ids) == list(range(569))
    assert [source.size for source in table[:3]] == [343, 113, 113]
    train = found.data[given[0]["id"]]
    for rows in given:
        expected = (found.data[rows["id"]] - train.mean(axis=0)) / train.std(axis=0)
        np.testing.assert_allclose(rows["columns"], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(rows["label"], found.target[rows["id"]])
        assert abs(rows["label"].mean() - found.target.mean()) < 0.01
    assert table.train.class_names == ("malignant", "benign")
    assert table.width == 30
    other = open_table("sklearn:breast_cancer", seed=4)
    assert not np.array_equal(other.test.ids, table.test.ids)
    np.testing.assert_array_equal(open_table("sklearn:breast_cancer", seed=3).test.ids, table.test.ids)


def test_numbers_to_regress_on_are_standardised_too():
    table, y = open_table("sklearn:diabetes"), datasets.load_diabetes().target
    assert table.train.task == "regression"
    for source in table[:3]:
        rows = all_rows(source)
        np.testing.assert_allclose(rows["label"] * table.spread + table.center, y[rows["id"]], rtol=1e-5)
    np.testing.assert_allclose(all_rows(table.train)["label"].std(), 1, rtol=1e-5)


def test_columns_of_a_file_are_typed_and_missing_values_are_inputs(tmp_path):
    size = [*SIZE[:-6].tolist(), "", "NA", "?", *SIZE[-3:].tolist()]
    colour = [*[""] * 10, *COLOUR[10:-10], *["n/a"] * 10]
    table = open_table(write(tmp_path / "t.csv", size=size, colour=colour, price=PRICE), seed=1)
    assert [(e.field, e.kind, e.width) for e in table.encodings] == [
        ("size", "numeric", 2),
        ("colour", "categorical", 4),
    ]
    assert table.encodings[1].categories == ("", "blue", "green", "red")
    for source in table[:3]:
        rows = all_rows(source)
        missing = np.array([isinstance(size[i], str) for i in rows["id"]])
        np.testing.assert_array_equal(rows["columns"][:, 1], missing)
        np.testing.assert_array_equal(rows["columns"][missing, 0], 0)
        hot = [[colour[i] in ("", "n/a"), *(colour[i] == c for c in ("blue", "green", "red"))] for i in rows["id"]]
        np.testing.assert_array_equal(rows["columns"][:, 2:], hot)


def test_what_cannot_be_used_is_counted_and_said(tmp_path, caplog):
    rare = np.where(np.arange(N) == open_table(write(tmp_path / "a.csv", x=SIZE, y=PRICE)).test.ids[0], "new", COLOUR)
    given = dict(x=SIZE, same=1, name=[f"n{i}" for i in range(N)], colour=rare, y=PRICE)  # noqa: C408
    given["same"] = np.ones(N)
    table = open_table(write(tmp_path / "b.csv", **given))
    assert [e.field for e in table.encodings] == ["x", "colour"]
    for said in (
        "`y` of",
        "1 column(s) of",
        "are constant in the training rows (same)",
        "hold texts of which most differ (name)",
        "have a `colour` that no training row has ('new')",
    ):
        assert said in caplog.text
    few = [*PRICE[:-2].tolist(), "", "nan"]
    assert sum(source.size for source in open_table(write(tmp_path / "c.csv", x=SIZE, y=few))[:3]) == N - 2
    assert "2 of 60 rows of" in caplog.text


@pytest.mark.parametrize(
    ("labels", "options", "task", "names"),
    [
        (np.where(PRICE > 20, "yes", "no"), {}, "classification", ("no", "yes")),
        (np.arange(N) % 12, {}, "classification", tuple(map(str, range(12)))),
        (np.arange(N) % 12, {"task": "regression"}, "regression", ()),
        (np.arange(N), {}, "regression", ()),
        (PRICE, {}, "regression", ()),
    ],
    ids=["texts", "few whole numbers", "by flag", "many whole numbers", "numbers"],
)
def test_the_target_tells_the_task(tmp_path, labels, options, task, names):
    table = open_table(write(tmp_path / "t.csv", y=labels, x=SIZE), target="y", **options)
    assert (table.train.task, table.train.class_names) == (task, names)
    if names:
        for source in table[:3]:
            assert set(data.labels_of(source)) == set(range(len(names))), "each split has each class"


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"x": [*SIZE[:-1], "big"], "y": PRICE}, {}, "`x` is 'big' in line 61 of .*1 of 60 values are texts"),
        ({"x": [*SIZE[:-1], "inf"], "y": PRICE}, {}, "`x` is 'inf' in line 61 of .* where a finite number is expected"),
        ({"x": SIZE, "y": ["a"] * N}, {}, "has the class 'a' alone"),
        ({"x": SIZE, "y": ["a", "b"] + ["c"] * (N - 2)}, {}, r"has 2 class\(es\) with fewer than 3 rows \(a and b\)"),
        ({"x": SIZE, "y": [*PRICE[:-1], "much"]}, {"task": "regression"}, "is 'much' in line 61"),
        ({"x": SIZE, "y": np.ones(N)}, {"task": "regression"}, "is 1 in each training row"),
        ({"x": np.ones(N), "y": PRICE}, {}, "has no column left to predict from"),
        ({"x": SIZE, "y": PRICE}, {"target": "z"}, r"has no column 'z' \(--target\): it has x and y"),
        ({"x": SIZE, "y": PRICE}, {"ignored": ("z",)}, r"has no column 'z' to predict from \(--ignored\)"),
        ({"x": SIZE, "y": PRICE}, {"fractions": (0.5, 0.5)}, "give two above 0 that leave some"),
        ({"y": PRICE}, {}, "has the column 'y' alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tables_that_do_not_fit_are_refused(tmp_path, columns, options, said):
    with pytest.raises(ValueError, match=said):
        open_table(write(tmp_path / "t.csv", **columns), **options)


@pytest.mark.parametrize("spec", ["sklearn:cancer", "houses.csv", "csv:", "csv:missing.csv"])
def test_what_is_no_table_is_refused(spec):
    with pytest.raises(ValueError, match=r"write sklearn:|does not exist"):
        open_table(spec)


def test_numbers_that_are_categories_by_name(tmp_path):
    spec = write(tmp_path / "t.csv", code=np.arange(N) % 3, y=PRICE)
    assert open_table(spec).encodings[0].kind == "numeric"
    assert open_table(spec, categorical=("code",)).encodings[0].categories == ("0", "1", "2")


def test_mixed_rows_take_whole_categories_and_numbers_near_the_neighbours(tmp_path):
    table = open_table(write(tmp_path / "t.csv", x=SIZE, colour=COLOUR, y=PRICE))
    union = data.munge(table.train, table.encodings, 200, seed=1)
    rows, own = all_rows(union), all_rows(table.train)
    np.testing.assert_array_equal(rows["columns"][: table.train.size], own["columns"])
    np.testing.assert_array_equal(rows["labelled"], np.arange(union.size) < table.train.size)
    mixed = rows["columns"][table.train.size :]
    np.testing.assert_array_equal(mixed[:, 1:].sum(axis=1), 1)
    assert set(np.unique(mixed[:, 1:])) == {0, 1}
    changed = ~np.isin(mixed[:, 0], own["columns"][:, 0])
    assert 0.3 < changed.mean() < 0.7, "about half of the numbers are drawn"
    assert np.all(np.diff(union.ids) > 0)
    near = data.munge(table.train, table.encodings, 200, swap=1.0, sharpness=1e9, seed=1)
    drawn = all_rows(near)["columns"][table.train.size :]
    distances = np.square(own["columns"][:, None] - own["columns"]).sum(axis=-1) + np.diag(
        np.full(len(own["id"]), np.inf)
    )
    nearest = own["columns"][np.unique(distances.argmin(axis=1))]
    gaps = np.abs(drawn[:, None] - nearest).max(axis=-1)
    assert gaps.min(axis=1).max() < 1e-5, "each is a nearest neighbour"
    assert (gaps.min(axis=0) < 1e-5).mean() > 0.9, "of any of the rows"
    with pytest.raises(ValueError, match="s above 0"):
        data.munge(table.train, table.encodings, 5, swap=2.0)
