"""Pictures with boxes: three kinds of annotations, folders and archives, and what is wrong with both."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxkd import data
from jaxkd.data.readers.boxes import read_coco, read_csv_boxes, read_voc

LINES = """image,split,class,xmin,ymin,xmax,ymax
a,train,cat,2,1,6,5
a,train,dog,0,0,10,8
b.png,val,cat,4,4,8,8
sub/c,test,dog,5,2,9,6
d,train,,,,,
"""


def png(height, width, value=0):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """Four pictures of 8 x 10 pixels, one of them in a folder."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "sub/c.png", "d.png")):
        (folder / name).write_bytes(png(8, 10, 50 * number))
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def csv(tmp_path):
    def write(text=LINES, name="boxes.csv"):
        (tmp_path / name).write_text(text)
        return f"csv:{tmp_path / name}"

    return write


def coco(**changes):
    """LINES as COCO has it; `a` has a crowd besides."""
    boxes = [(1, 7, [2, 1, 4, 4], 0), (1, 9, [0, 0, 10, 8], 0), (2, 7, [4, 4, 4, 4], 0), (1, 7, [1, 1, 3, 3], 1)]
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "height": 8, "width": 10} for i, n in enumerate("abcd", 1)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": p, "category_id": c, "bbox": b, "iscrowd": crowd}
            for i, (p, c, b, crowd) in enumerate(boxes)
        ],
    }
    return content | changes


def voc(name, boxes, more=""):
    objects = "".join(
        f"<object><name>{label}</name><difficult>{hard}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, hard, x1, y1, x2, y2 in boxes
    )
    size = "<size><width>10</width><height>8</height><depth>3</depth></size>"
    return f"{more}<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"


def rows(source):
    return source.read(np.arange(len(source)))


def test_boxes_of_a_csv_are_resized_with_their_pictures_and_padded(pictures, csv):
    found = data.open_boxes(csv(), str(pictures), image_size=(16, 30))
    train = rows(found["train"])
    assert {split: len(source) for split, source in found.items()} == {"train": 2, "val": 1, "test": 1}
    assert found["train"].class_names == ("cat", "dog")
    assert train["image"].shape == (2, 16, 30, 3)
    np.testing.assert_array_equal(train["boxes"][0], [[6, 2, 18, 10], [0, 0, 30, 16]])
    np.testing.assert_array_equal(train["label"], [[0, 1], [-1, -1]], "a picture without objects stays")
    np.testing.assert_array_equal(train["boxes"][1], np.zeros((2, 4)))
    np.testing.assert_array_equal(rows(found["test"])["image"], np.full((1, 16, 30, 3), 100), "sub/c")
    assert found["train"].task == "boxes"


def test_a_zip_archive_holds_the_same_as_its_folder(tmp_path, pictures, csv):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for path in pictures.rglob("*.*"):
            archive.write(path, path.relative_to(pictures))
    options = {"image_size": (8, 10)}
    one, two = (data.open_boxes(csv(), str(p), **options) for p in (pictures, tmp_path / "pictures.zip"))
    for split in one:
        for field, values in rows(one[split]).items():
            np.testing.assert_array_equal(values, rows(two[split])[field])


def test_coco_keeps_the_order_of_ids_crowds_and_pictures_without_boxes(tmp_path, pictures):
    for split in ("train", "val"):
        (tmp_path / f"boxes_{split}.json").write_text(json.dumps(coco()))
    given = read_coco(tmp_path / "boxes_train.json", "train")
    assert list(given.classes) == ["cat", "dog"]
    assert [len(one.boxes) for one in given.pictures] == [3, 1, 0, 0]
    assert given.pictures[0].boxes[0].corners == (2, 1, 6, 5)
    with pytest.raises(ValueError, match=r"or is named twice"):
        data.open_boxes(f"coco:{tmp_path}/boxes_{{split}}.json", str(pictures), image_size=(8, 10))
    one = data.open_boxes(f"coco:{tmp_path}/boxes_train.json", str(pictures), image_size=(8, 10))
    assert sorted(len(source) for source in one.values()) == [1, 1, 2], "drawn, since the file has no splits"
    assert sum(rows(source)["crowd"].sum() for source in one.values()) == 1


def test_voc_reads_its_lists_and_what_is_difficult(tmp_path, pictures):
    folder = tmp_path / "voc"
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name in "abcd":
        (folder / "Annotations" / f"{name}.xml").write_text(voc(name, [("cat", int(name == "b"), 2, 1, 6, 5)]))
    for split, names in (("train", "a\nc 1\n"), ("val", "b\n"), ("test", "d\n"), ("cat_train", "a -1\n")):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
    found = data.open_boxes(f"voc:{folder}", str(pictures), image_size=(8, 10))
    assert [len(found[split]) for split in ("train", "val", "test")] == [2, 1, 1]
    assert rows(found["val"])["crowd"].all()
    np.testing.assert_array_equal(rows(found["train"])["boxes"][0], [[2, 1, 6, 5]])
    bomb = '<!DOCTYPE a [<!ENTITY b "bb">]>'
    (folder / "Annotations" / "a.xml").write_text(voc("a", [], bomb))
    with pytest.raises(ValueError, match=r"a\.xml declares a document type or entities"):
        read_voc(folder)


def test_boxes_over_the_border_are_cut_or_refused_and_empty_ones_left_out(pictures, csv, caplog):
    spec = csv(LINES + "a,train,cat,8,6,14,12\na,train,cat,3,3,3,7\na,train,cat,20,20,30,30\nd,train,dog,-0.5,0,4,4\n")
    found = data.open_boxes(spec, str(pictures), image_size=(8, 10))
    np.testing.assert_array_equal(rows(found["train"])["boxes"][0, 2], [8, 6, 10, 8])
    np.testing.assert_array_equal(rows(found["train"])["boxes"][1, 0], [0, 0, 4, 4], "rounding is no news")
    assert "1 box(es)" in caplog.text
    assert "reach over the border" in caplog.text
    assert "2 box(es)" in caplog.text
    assert "no area within their picture" in caplog.text
    with pytest.raises(ValueError, match=r"line 7 of .*\(8, 6\) to \(14, 12\), outside of a.png, which is 10 pixels"):
        data.open_boxes(spec, str(pictures), image_size=(8, 10), outside="refuse")


def test_chosen_classes_and_boxes_at_most(pictures, csv, caplog):
    found = data.open_boxes(csv(), str(pictures), image_size=(8, 10), classes=("dog",))
    assert found["train"].num_classes == 1
    assert rows(found["train"])["boxes"].shape == (2, 1, 4)
    assert len(found["val"]) == 1, "its cat is left out, and it stays"
    assert "2 box(es)" in caplog.text
    assert "are of other classes than dog" in caplog.text
    with pytest.raises(ValueError, match="has no class 'emu': choose --classes among cat and dog"):
        data.open_boxes(csv(), str(pictures), image_size=(8, 10), classes=("emu",))
    with pytest.raises(ValueError, match=r"a\.png has 2 boxes but at most 1 are kept: give --max-boxes 2"):
        data.open_boxes(csv(), str(pictures), image_size=(8, 10), most=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("a,train,cat,2", "z,train,cat,2"), r"1 of the 5 pictures of .* are not in .* \(z\)"),
        (("2,1,6,5", "2,1,six,5"), r"line 2 of .* has xmax 'six': give a number of pixels"),
        (("2,1,6,5", "6,5,2,1"), r"line 2 of .* whose second corner lies before the first"),
        (("2,1,6,5", "2,1,inf,5"), r"has xmax 'inf'"),
        (("cat,2,1", ",2,1"), r"line 2 of .* has a box without a class"),
        (("a,train,dog", "a,val,dog"), r"line 3 of .* puts the picture a into 'val', but it was in 'train'"),
        (("val,cat", "later,cat"), r"has the split 'later': name its splits train, val and test"),
        (("xmin", "left"), r"has no column 'xmin'.*\(--columns\)"),
    ],
    ids=["no picture", "no number", "turned", "infinite", "no class", "two splits", "split", "column"],
)
def test_mistakes_in_a_csv_are_named(pictures, csv, change, message):
    with pytest.raises(ValueError, match=message):
        data.open_boxes(csv(LINES.replace(*change, 1)), str(pictures), image_size=(8, 10))


@pytest.mark.parametrize("none", ["", "-"])
def test_columns_have_other_names_and_no_split(tmp_path, csv, none):
    csv("file,kind,l,t,r,b\nx.png,cat,1,2,3,4\n")
    given = read_csv_boxes(tmp_path / "boxes.csv", ("file", none, "kind", "l", "t", "r", "b"))
    assert given.pictures[0].split is None
    assert given.pictures[0].boxes[0].corners == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 1, "file_name": "a.png", "height": 16, "width": 20}]}, "is of the picture 2"),
        ({"categories": [{"id": 7, "name": "cat"}]}, "has the category 9, which `categories` does not list"),
        ({"annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3]}]}, r"give \[x, y, width, height\]"),
        ({"annotations": [{"image_id": 1, "category_id": 7}]}, "lacks image_id, category_id or bbox"),
        ({"images": [{"file_name": "a.png"}]}, "is no annotation file of COCO"),
    ],
    ids=["picture", "category", "bbox", "no bbox", "no id"],
)
def test_mistakes_in_coco_are_named(tmp_path, changes, message):
    (tmp_path / "boxes.json").write_text(json.dumps(coco(**changes)))
    with pytest.raises(ValueError, match=message):
        read_coco(tmp_path / "boxes.json")


def test_pictures_that_were_annotated_at_another_size_or_are_broken_are_named(tmp_path, pictures, csv):
    changed = coco()
    changed["images"][0]["height"] = 16
    (tmp_path / "boxes.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"a\.png is 8 x 10 pixels but its annotation is for 16 x 10"):
        data.open_boxes(f"coco:{tmp_path / 'boxes.json'}", str(pictures), image_size=(8, 10))
    (pictures / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"the picture b\.png of .* cannot be read"):
        data.open_boxes(csv(), str(pictures), image_size=(8, 10))


def test_places_that_are_none(tmp_path, pictures, csv):
    with pytest.raises(ValueError, match="write coco:PATH, csv:PATH or voc:FOLDER"):
        data.open_boxes("yolo:x", str(pictures), image_size=(8, 10))
    with pytest.raises(ValueError, match="is no ZIP archive"):
        data.open_boxes(csv(), str(pictures / "notes.txt"), image_size=(8, 10))
    with pytest.raises(ValueError, match=r"--pictures is .*nowhere, which does not exist"):
        data.open_boxes(csv(), str(tmp_path / "nowhere"), image_size=(8, 10))
    with pytest.raises(ValueError, match="has no XML file"):
        data.open_boxes(f"voc:{pictures}", str(pictures), image_size=(8, 10))
