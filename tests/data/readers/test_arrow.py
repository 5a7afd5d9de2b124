"""Parquet files and data sets of Hugging Face, as the package `datasets` writes them."""

import json
import sys
import types

import pytest

from jaxkd import data
from jaxkd.data.text_files import splits_of_texts

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FEATURES = {
    "info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}}
}


def table(texts, labels):
    return pa.table({"text": texts, "label": labels}).replace_schema_metadata({"huggingface": json.dumps(FEATURES)})


def save(folder, rows, split=None):
    """A folder as `datasets.save_to_disk` makes it."""
    folder.mkdir(parents=True)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, rows.schema) as out,
    ):
        out.write_table(rows)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))


def test_parquet(tmp_path):
    pq.write_table(table(["a", "b"], [1, 0]), tmp_path / "train.parquet")
    texts = data.open_texts(f"parquet:{tmp_path}/{{split}}.parquet", "train")
    assert (texts.texts, texts.labels.tolist(), texts.class_names) == (["a", "b"], [1, 0], ("neg", "pos"))
    (tmp_path / "test.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"test.parquet cannot be read .*: copy or download it anew"):
        data.open_texts(f"parquet:{tmp_path}/{{split}}.parquet", "test")
    latin = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": latin}), tmp_path / "latin.parquet")
    with pytest.raises(ValueError, match=r"`text` of .*latin.parquet is not UTF-8"):
        data.open_texts(f"parquet:{tmp_path}/latin.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty.parquet is empty"):
        data.open_texts(f"parquet:{tmp_path}/empty.parquet")


def test_sets_saved_to_disk(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    save(tmp_path / "set" / "train", table(["a", "b"], [1, 1]))
    save(tmp_path / "set" / "test", table(["c"], [-1]))
    place = f"hf:{tmp_path}/set"
    assert splits_of_texts(place) == ["train", "test"]
    train = data.open_texts(place, "train")
    assert (train.texts, train.labels.tolist(), train.class_names) == (["a", "b"], [1, 1], ("neg", "pos"))
    assert data.open_texts(place, "test").task == "unlabelled"
    with pytest.raises(ValueError, match="has no split 'dev': it has train and test"):
        data.open_texts(place, "dev")
    save(tmp_path / "one", table(["a"], [2]), "validation")
    with pytest.raises(ValueError, match=r"label 2 in row 0 .* none of the 2 classes that `label` declares"):
        data.open_texts(f"hf:{tmp_path}/one", "validation")
    (tmp_path / "one" / "state.json").write_text('{"_indices_data_files": [{"filename": "x"}]}')
    with pytest.raises(ValueError, match="flatten_indices"):
        splits_of_texts(f"hf:{tmp_path}/one")
    with pytest.raises(ValueError, match=r"is no folder of datasets.save_to_disk"):
        splits_of_texts(f"hf:{tmp_path}")


def test_a_copy_of_a_repository(tmp_path):
    (tmp_path / "data").mkdir()
    for i, text in enumerate("ab"):
        pq.write_table(table([text], [i]), tmp_path / "data" / f"train-0000{i}-of-00002.parquet")
    assert splits_of_texts(f"hf:{tmp_path}") == ["train"]
    assert data.open_texts(f"hf:{tmp_path}", "train").texts == ["a", "b"]


def test_a_set_on_the_hub(tmp_path, monkeypatch):
    pq.write_table(table(["a"], [1]), tmp_path / "0000.parquet")
    files = ["one/train/0000.parquet", "two/train/0000.parquet", "README.md"]
    hub = types.SimpleNamespace(
        list_repo_files=lambda repo, **_: files,
        hf_hub_download=lambda repo, name, **_: str(tmp_path / "0000.parquet"),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert data.open_texts("hf:org/name/two", "train").texts == ["a"]
    with pytest.raises(
        ValueError, match="has the configurations one and two: write one behind it, such as hf:org/name/one"
    ):
        data.open_texts("hf:org/name", "train")

    def offline(*args, **_):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "list_repo_files", offline)
    with pytest.raises(ValueError, match=r"org/name is no folder, and the hub gave .*ConnectionError.*give hf:FOLDER"):
        data.open_texts("hf:org/name", "train")
    for package, place in (("huggingface_hub", "hf:org/name"), ("pyarrow", f"parquet:{tmp_path}/0000.parquet")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r'pip install "jaxkd\[\w+\]"'):
            data.open_texts(place, "train" if place.startswith("hf") else "all")
