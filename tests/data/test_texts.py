"""Texts from files of every kind: fields, labels, splits, and what is said of bad files."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data.text_files import splits_of_texts

HEADER = "label\tsentence\n"
ROWS = HEADER + "pos\tgood\nneg\tbad\npos\tfine\n"


@pytest.fixture
def file(tmp_path):
    """Writes a file and returns its place, whose kind is the name's suffix."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"{name.split('.')[1]}:{path}"

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.tsv", ROWS.encode()),
        ("windows.tsv", b"\xef\xbb\xbf" + ROWS.replace("\n", "\r\n").encode()),
        ("mac.tsv", ROWS.replace("\n", "\r").encode()),
        ("lines_at_the_end.tsv", ROWS.encode() + b"\n\n"),
        ("xz.tsv", lzma.compress(ROWS.encode())),
        ("gz.tsv", gzip.compress(ROWS.encode())),
        ("bz2.tsv", bz2.compress(ROWS.encode())),
        ("quoted.csv", b'label,sentence\npos,"good"\nneg,bad\npos,fine\n'),
        (
            "objects.jsonl",
            b"".join(
                b'{"label": "%s", "text": "%s"}\n' % p for p in [(b"pos", b"good"), (b"neg", b"bad"), (b"pos", b"fine")]
            ),
        ),
    ],
)
def test_one_content_in_many_files(file, name, content):
    texts = data.open_texts(file(name, content))
    assert texts.texts == ["good", "bad", "fine"]
    assert (texts.labels.tolist(), texts.labels.dtype) == ([1, 0, 1], np.int32)
    assert (texts.class_names, texts.task, texts.pairs) == (("neg", "pos"), "classification", None)
    assert texts.ids.tolist() == [0, 1, 2]


def test_quotes_are_characters_of_a_tsv_and_hold_fields_of_a_csv_together(file):
    assert data.open_texts(file("a.tsv", HEADER + '1\t"a" b\n0\t"c\n')).texts == ['"a" b', '"c']
    long = "x" * 200_000  # more than the module csv takes by itself
    texts = data.open_texts(file("a.csv", f'label,sentence\n1,"a, ""b""\nc"\n0,{long}\n'))
    assert texts.texts == ['a, "b"\nc', long]


def test_no_other_character_ends_a_line(file):
    odd = "a\u2028b\x85c\x0bd\x1c"
    assert data.open_texts(file("a.tsv", HEADER + f"1\t{odd}\n")).texts == [odd]
    assert data.open_texts(file("a.lines", f"{odd}\n\nb\n")).texts == [odd, "", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "", "a.tsv is empty"),
        ("a.tsv", HEADER, "no line below the first"),
        ("a.tsv", HEADER + "1\ta\n0\n", r"line 3 of .*a.tsv has 1 field\(s\).*first line names 2"),
        ("a.tsv", HEADER + "1\ta\n\n0\tb\n", r"line 3 of .*a.tsv has 1 field"),
        ("a.tsv", HEADER + "1\ta\tb\n", r"line 2 of .*a.tsv has 3 field\(s\), '1 | a | b'"),
        ("a.tsv", HEADER.encode() + b"1\ta\n0\tcaf\xe9\n", r"line 3 of .*a.tsv is not UTF-8 \(byte 0xe9\)"),
        ("a.tsv", HEADER + "1\ta\n0\tb\0\n", "line 3 of .*a.tsv holds a NUL byte"),
        ("a.tsv", HEADER.encode("utf-16"), "is text in UTF-16"),
        ("a.tsv", b"PK\x03\x04...", "is a ZIP archive or a spreadsheet"),
        ("a.tsv", lzma.compress(ROWS.encode())[:-9], "a.tsv cannot be decompressed"),
        ("a.tsv", "label\tlabel\tsentence\n1\t1\ta\n", "names the field 'label' twice"),
        ("a.tsv", "1\tgood\n0\tbad\n", "no field with a usual name of texts, such as sentence or text: it has '1'"),
        ("a.tsv", "label,sentence\n1,a\n", "one field only.*write csv:PATH"),
        ("a.tsv", "good\nbad\n", "one field only.*write lines:PATH"),
        ("a.csv", 'label,sentence\n1,a\n0,"b\n1,c\n', "line 3 of .*a.csv is no CSV .*: close its quotes"),
        ("a.csv", 'label,sentence\n1,"a\nb"\n0\n', "line 4 of .*a.csv has 1 field"),
        ("a.jsonl", '{"text": "a"}\n{"text":\n', "line 2 of .*a.jsonl is not JSON"),
        ("a.jsonl", '{"text": "a"}\n"b"\n', "line 2 of .*a.jsonl holds 'b' where an object is expected"),
        ("a.jsonl", '[{"text": "a"}]\n', "line 1 of .* one object a line, as jq"),
        ("a.jsonl", "[" * 100_000, "line 1 of .*a.jsonl is not JSON"),
        ("a.jsonl", '{"text": "a"}\n\n{"id": 1}\n', "`text` is missing in line 3 of .*a.jsonl"),
        ("a.jsonl", '{"text": 5}\n', "`text` is 5, which is no text in line 1"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "half a surrogate pair in line 1"),
        ("a.tsv", HEADER + "1\ta\n\tb\n", "`label` is missing in line 3 of .*a.tsv"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": null}\n', "`label` is missing in line 2"),
        ("a.tsv", HEADER + "1\ta\nlabel\tsentence\n0\tb\n", "`label` is 'label' in line 3 .*are whole numbers"),
        ("a.tsv", HEADER + "1.5\ta\n1e40\tb\n", "`label` is 1e40 in line 3 .*: give a finite number"),
        ("a.jsonl", '{"text": "a", "label": [1]}\n', "`label` in line 1 of .* is .1.: give a word or a number"),
        ("a.tsv", HEADER + "".join(f"x{i}\ta\n" for i in range(60)), "60 different values in 60 rows"),
    ],
)
def test_a_bad_file_is_a_sentence_with_its_line(file, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.open_texts(file(name, content))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("a.tsv", "'a.tsv' does not say what kind of texts it holds: write tsv:a.tsv"),
        ("reviews", "begin it with one of tsv:, csv:"),
        ("tsv:/nowhere/a.tsv", "/nowhere/a.tsv does not exist"),
        ("tsv:/", "/ is a folder"),
        (5, "texts were given as int"),
        ({}, "the columns given are empty"),
        ({"text": ["a"], "label": [0, 1]}, "different numbers of rows"),
        ({"a": {"text": ["b"]}}, "have no split 'all': they have a"),
    ],
)
def test_a_place_that_is_none(place, message):
    with pytest.raises(ValueError, match=message):
        data.open_texts(place)


@pytest.mark.parametrize(
    ("given", "labels", "names"),
    [
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        (["10", "9", "-1"], [2, 1, 0], ("-1", "9", "10")),
        ([3, 1, 3], [1, 0, 1], ("1", "3")),
        ([True, False, True], [1, 0, 1], ("False", "True")),
        ([" pos", "neg ", "pos"], [1, 0, 1], ("neg", "pos")),
        (["1.5", "2", "3"], [1.5, 2, 3], ()),
        ([0.5, 1, 2], [0.5, 1, 2], ()),
        ([None, None, None], None, ()),
    ],
)
def test_labels_are_numbered_or_stay_numbers(given, labels, names):
    texts = data.open_texts({"text": ["a", "b", "c"], "label": given})
    assert (None if labels is None else texts.labels.tolist(), texts.class_names) == (labels, names)


def test_classes_in_the_order_given_and_none_that_is_not_there():
    rows = {"text": ["a", "b"], "label": ["NUM:dist", "HUM:ind"]}
    coarse = data.open_texts(rows, relabel=lambda label: label.partition(":")[0], class_names=("NUM", "HUM"))
    assert (coarse.labels.tolist(), coarse.class_names) == ([0, 1], ("NUM", "HUM"))
    with pytest.raises(ValueError, match=r"label 'HUM:ind' in row 1 of .* is none of the 1 classes"):
        data.open_texts(rows, class_names=("NUM:dist",))
    with pytest.raises(ValueError, match="the class names are 'a' and 'a': name each class once"):
        data.open_texts(rows, class_names=("a", "a"))
    whole = data.open_texts({"text": ["a"], "label": ["2"]}, class_names=())  # a split of a set of numbers
    assert (whole.labels.tolist(), whole.task) == ([2.0], "regression")
    assert data.open_texts(rows, labelled=False).task == "unlabelled"


def test_fields_by_usual_names_or_by_name(caplog):
    rows = {"premise": ["a"], "hypothesis": ["b"], "gold_label": ["x"], "idx": [7]}
    texts = data.open_texts(rows)
    assert (texts.texts, texts.pairs, texts.class_names, texts.fields) == (["a"], ["b"], ("x",), {"idx": [7]})
    texts = data.open_texts(rows, text="hypothesis", label="idx")
    assert (texts.texts, texts.pairs, texts.class_names) == (["b"], None, ("7",))
    assert not caplog.messages
    data.open_texts({"Review Text": ["a"], "sentence": ["b"], "Label": ["x"], "class-index": ["y"]})
    assert [m.partition(" (")[0] for m in caplog.messages] == [
        "the mapping given has several fields that may be its labels",
        "the mapping given has several fields that may be its texts",
    ]
    for name, flag in (("text", "--text-field"), ("pair", "--pair-field"), ("label", "--label-field")):
        with pytest.raises(ValueError, match=rf"no field 'x' \({flag}\): it has premise"):
            data.open_texts(rows, **{name: "x"})
    with pytest.raises(ValueError, match="is named twice"):
        data.open_texts(rows, text="premise", pair="premise")


def test_labels_in_a_file_of_their_own(file, tmp_path):
    place = file("texts.lines", "a\nb\n")
    for lines, message in (("x\ny\nx\n", "line 3 of .*labels.txt has no partner"), ("x\n", "line 2 of .*texts.lines")):
        (tmp_path / "labels.txt").write_text(lines)
        with pytest.raises(ValueError, match=message):
            data.open_texts(place, label=f"lines:{tmp_path}/labels.txt")
    headed = file("headed.tsv", "sentence\na\nb\n")  # whose second row is line 3, as that of its labels is not
    for lines, wrong in (("x\n\n", "is missing"), ("x\nz\n", "the label 'z'")):
        (tmp_path / "labels.txt").write_text(lines)
        with pytest.raises(ValueError, match=rf"{wrong} in line 2 of .*labels\.txt"):
            data.open_texts(headed, label=f"lines:{tmp_path}/labels.txt", class_names=("x", "y"))
    (tmp_path / "labels.txt").write_text("x\ny\n")
    assert data.open_texts(place, label=f"lines:{tmp_path}/labels.txt").labels.tolist() == [0, 1]


def test_slices_are_drawn_from_each_class_of_a_file_that_is_sorted(file):
    place = file("sorted.tsv", HEADER + "".join(f"{i // 50}\ttext {i}\n" for i in range(100)))
    parts = [data.open_texts(place, f"all{part}") for part in ("[:80%]", "[80%:90%]", "[90%:]")]
    assert [(len(part), part.labels.sum()) for part in parts] == [(80, 40), (10, 5), (10, 5)]
    assert sorted(np.concatenate([part.ids for part in parts])) == list(range(100))
    assert all(part.texts == [f"text {i}" for i in part.ids] for part in parts)
    data.check_disjoint(*parts)
    assert data.open_texts(place, "all[3:5]").texts == ["text 3", "text 4"]


def test_splits_in_files_of_their_own(file, tmp_path):
    place = file("s_train.tsv", ROWS).replace("train", "{split}")
    file("s_dev.tsv.xz", ROWS)
    file("s_test.tsv", HEADER + "neg\tworse\n")
    assert splits_of_texts(place) == ["test", "train"]
    assert splits_of_texts({"text": ["a"]}) == ["all"]
    assert data.open_texts(place, "test", class_names=("neg", "pos")).labels.tolist() == [0]
    with pytest.raises(ValueError, match=r"no split 'dev', no file .*s_dev.tsv: it has test and train"):
        data.open_texts(place, "dev")
    with pytest.raises(ValueError, match="is not understood"):
        data.open_texts(place, "train[:1")
    with pytest.raises(ValueError, match=r"there is no file .*x_{split}"):
        splits_of_texts(place.replace("s_", "x_"))


def test_lines_of_json_lack_fields(file):
    rows = [{"text": "a", "extra": 1}, {"text": "b"}]
    texts = data.open_texts(file("a.jsonl", "\n".join(map(json.dumps, rows))))
    assert texts.fields == {"extra": [1, None]}
