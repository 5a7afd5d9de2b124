"""Flags of experiments on texts: splits that agree, teachers, tokens that are kept, and what is refused."""

import dataclasses

import numpy as np
import pytest

from jaxkd import data
from jaxkd.experiment.texts import TextConfig, open_teacher, open_texts_of, open_unlabelled, teacher_folder, tokenised
from jaxkd.pytorch import huggingface

tokenizers = pytest.importorskip("tokenizers")

HEADER = "label\tsentence\n"


@pytest.fixture
def config(tmp_path):
    """Makes configurations whose `--source` is a file of this content, or {split}s of these."""

    def make(content=None, **options):
        contents = content if isinstance(content, dict) else {"all": content}
        for split, text in contents.items():
            if text is not None:
                (tmp_path / f"a_{split}.tsv").write_text(HEADER + text)
        name = "a_{split}.tsv" if isinstance(content, dict) else "a_all.tsv"
        source = "sentences" if content is None else f"tsv:{tmp_path}/{name}"
        return TextConfig(**{"source": source, "root": str(tmp_path / "runs"), "teacher": "tiny", **options})

    return make


def rows(start, stop, classes=2):
    return "".join(f"{i % classes}\ttext {i}\n" for i in range(start, stop))


def test_a_file_that_is_sorted_by_class_is_split_at_random(config, caplog):
    splits = open_texts_of(config("".join(f"{i // 50}\ttext {i}\n" for i in range(100))))
    assert [(len(one), int(one.labels.sum())) for one in splits] == [(80, 40), (10, 5), (10, 5)]
    assert caplog.messages == [
        "the splits are all[:80%] to train on, all[80%:90%] for validation, and all[90%:] to test on."
    ]


@pytest.mark.parametrize(
    ("names", "chosen", "said"),
    [
        (("train", "dev", "test"), ("train", "dev", "test"), False),
        (("train", "validation", "test"), ("train", "validation", "test"), False),
        (("train", "test"), ("train[:90%]", "train[90%:]", "test"), True),
        (("train", "dev"), ("train[:90%]", "train[90%:]", "dev"), True),
    ],
)
def test_splits_are_those_that_there_are(config, caplog, names, chosen, said):
    splits = open_texts_of(config({name: rows(100 * i, 100 * i + 40) for i, name in enumerate(names)}))
    assert [one.name.partition("[")[2][:-1] for one in splits] == list(chosen)
    assert bool(caplog.messages) == said


def test_classes_are_those_of_the_training_split(config):
    contents = {"train": "b\tx\na\ty\nc\tz\n", "dev": "c\tu\n", "test": "a\tv\n"}
    splits = open_texts_of(config(contents))
    assert [one.labels.tolist() for one in splits] == [[1, 0, 2], [2], [0]]
    assert {one.class_names for one in splits} == {("a", "b", "c")}
    with pytest.raises(ValueError, match=r"the label 'd' in line 2 of .*a_test.tsv is none of the 3 classes"):
        open_texts_of(config({**contents, "test": "d\tv\n"}))
    numbers = open_texts_of(config({"train": "1.5\tx\n2\ty\n", "dev": "2\tu\n", "test": "3\tv\n"}))
    assert [one.labels.tolist() for one in numbers] == [[1.5, 2], [2], [3]]
    fine = config({"train": "A:x\ta\nB:y\tb\n", "dev": "A:z\tu\n", "test": "B:z\tv\n"})
    coarse = open_texts_of(fine, relabel=lambda label: label.partition(":")[0])
    assert coarse.test.class_names == ("A", "B")


def test_texts_that_stand_in_two_splits_are_counted_and_rows_refused(config, caplog):
    contents = {"train": rows(0, 20), "dev": rows(30, 40), "test": rows(18, 22)}
    given = config(contents, unlabelled="sentences")
    splits = open_texts_of(given)
    assert caplog.messages == [
        "2 of the 4 texts of a_{split}.tsv[test] stand word for word in a_{split}.tsv[train] too."
    ]
    texts = open_unlabelled(dataclasses.replace(given, unlabelled=given.source), splits)
    assert (len(texts), texts.task) == (18, "unlabelled")
    assert caplog.messages[1].startswith("2 of the 20 texts of a_{split}.tsv[train] also stand in the validation or")
    assert open_unlabelled(config(contents), splits) is None
    assert len(open_unlabelled(given, splits)) == 96  # the sentences made in memory
    with pytest.raises(ValueError, match=r"all texts of --unlabelled .* are of the validation or test split"):
        open_unlabelled(dataclasses.replace(given, unlabelled=given.source.replace("{split}", "dev")), splits)
    with pytest.raises(ValueError, match="--train-split overlaps with a split to evaluate on"):
        open_texts_of(config(contents, test_split="train[:50%]"))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (rows(0, 40, 1), {}, r"has one class only \(0\), which leaves nothing to learn"),
        (rows(0, 2), {}, r"split 'all\[80%:90%\]' of a_all.tsv is empty"),
        ({"one": rows(0, 9), "two": rows(9, 18)}, {}, "has the splits one and two: name those to use by --train-split"),
        ({"train": rows(0, 9), "more": rows(9, 18)}, {}, "has the splits more and train: name the one .*--test-split"),
        ({"train": rows(0, 9), "dev": rows(9, 18), "test": "\tx\n\ty\n"}, {}, r"test\] has no labels"),
        (rows(0, 9), {"source": "a.tsv"}, "write tsv:a.tsv"),
        (rows(0, 9), {"text_field": "body"}, r"no field 'body' \(--text-field\): it has label and sentence"),
    ],
)
def test_sources_that_no_student_can_learn_from(config, content, options, message):
    with pytest.raises(ValueError, match=message):
        open_texts_of(config(content, **options))


def test_flags_alone(config):
    with pytest.raises(ValueError, match=r"no --source is given: write --source tsv:PATH .*label<TAB>sentence"):
        TextConfig().check()
    with pytest.raises(ValueError, match="--max-length is 3: give a number from 4"):
        config(max_length=3).check()
    with pytest.raises((ValueError, OSError), match=r"there is no folder .*nowhere"):
        teacher_folder(config(teacher="nowhere"), open_texts_of(config()).train)


def test_the_tiny_teacher_and_tokens_that_are_kept(config, monkeypatch, caplog):
    given = config(max_length=32, buckets=3)
    splits = open_texts_of(given)
    pretrained, tokenizer = open_teacher(given, splits.train, huggingface.encoder)
    size = pretrained.config["vocab_size"]
    assert size == tokenizer.size
    sources = tokenised(given, tokenizer, *splits, vocabulary=size)
    assert len({source.buckets for source in sources}) == 1
    (said,) = (message for message in caplog.messages if "programs" in message)
    assert said == "texts are padded to 16, 24 and 32 tokens, so a step has 3 programs."
    monkeypatch.setattr(data.Tokenizer, "__call__", lambda *_, **__: pytest.fail("tokenised again"))
    again = tokenised(given, tokenizer, *splits)
    np.testing.assert_array_equal(again[1].read(np.arange(9))["tokens"], sources[1].read(np.arange(9))["tokens"])
    with pytest.raises(ValueError, match=r"--max-length is 64 but --teacher .* takes at most 32 tokens"):
        open_teacher(config(max_length=64, teacher=str(pretrained.folder)), splits.train, huggingface.encoder)
