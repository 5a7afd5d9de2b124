"""Rows of several tasks in one source: whose they are, how they are padded, what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxkd import data, losses, objectives
from jaxkd.types import Outputs

RNG = np.random.default_rng(0)


def tokens(rows, length, classes):
    given = {"tokens": RNG.integers(1, 9, (rows, length)), "token_mask": np.ones((rows, length), bool)}
    return data.open_source({**given, "label": np.arange(rows) % classes}, "train")


OLD, NEW = tokens(7, 5, 3), tokens(4, 8, 2)
JOINED = data.join_tasks(old=OLD, new=NEW)


def test_rows_are_those_of_the_tasks_one_after_the_other():
    assert (len(JOINED), JOINED.num_classes) == (11, 3)
    found, old, new = (source.read(np.arange(len(source))) for source in (JOINED, OLD, NEW))
    np.testing.assert_array_equal(found["tokens"][:7, :5], old["tokens"])
    np.testing.assert_array_equal(found["tokens"][7:], new["tokens"])
    assert not found["token_mask"][:7, 5:].any()
    assert found["token_mask"].sum() == 7 * 5 + 4 * 8
    np.testing.assert_array_equal(found["is_old"], np.arange(11) < 7)
    np.testing.assert_array_equal(found["is_new"], np.arange(11) >= 7)
    np.testing.assert_array_equal(found["id"], JOINED.ids)
    np.testing.assert_array_equal(data.labels_of(JOINED), np.r_[data.labels_of(OLD), data.labels_of(NEW)])


def test_batches_mix_the_tasks_and_depend_on_seed_and_number_alone():
    batches = data.train_batches(JOINED, 4, seed=3)
    whole = JOINED.read(np.arange(11))
    seen = [batches[k] for k in range(2)]
    for batch in seen:
        for field in whole:
            np.testing.assert_array_equal(batch[field], whole[field][batch["id"]])
    again = data.train_batches(JOINED, 4, seed=3)[1]
    jax.tree.map(np.testing.assert_array_equal, dict(again), dict(seen[1]))
    assert any(0 < batch["is_new"].sum() < 4 for batch in seen)


def test_a_term_of_one_task_sees_none_of_the_others_labels():
    """Labels of the old task are no classes of the new one, and yet nothing is NaN."""
    batch = JOINED.read(np.arange(11))
    z = RNG.standard_normal((11, 2)).astype(np.float32)
    term = objectives.from_outputs(losses.cross_entropy, "student.logits_new", "batch.label", where="is_new")
    student, key = Outputs(z, {"logits_new": z}), jax.random.key(0)
    found = term.apply(term.init(key, student, student, batch), student, student, batch, key, np.int32(0))[0]
    assert found == pytest.approx(float(np.mean(losses.cross_entropy(z[7:], batch["label"][7:]))), rel=1e-6)


def test_batches_of_tasks_with_buckets_are_cut_to_common_ones():
    texts = {"sentence": ["a b", "a", "b a b a"] * 4 + ["a b a b a b a b a b a"], "label": [0, 1, 0] * 4 + [1]}
    tokenizer = data.train_tokenizer(texts["sentence"], 50)
    short, long = (data.open_texts(texts, f"all[{rows}]") for rows in ("4:12", "8:13"))
    parts = [data.tokenise(one, tokenizer, max_length=20, buckets=2) for one in (short, long)]
    joined = data.join_tasks(old=parts[0], new=parts[1])
    assert joined.buckets == parts[1].buckets
    assert len(joined.buckets) == 2
    whole, found = joined.read(np.arange(13)), data.eval_batches(joined, 4)
    widths = [batch["tokens"].shape[1] for batch in found]
    assert widths == [joined.buckets[0]] * 3 + [joined.buckets[1]]
    for batch, width in zip(found, widths, strict=True):
        np.testing.assert_array_equal(batch["tokens"], whole["tokens"][batch["id"], :width])
        assert not whole["token_mask"][batch["id"], width:].any()
    with pytest.raises(ValueError, match=r"has buckets of lengths but .* has not: tokenise both alike"):
        data.join_tasks(old=parts[0], new=dataclasses.replace(parts[1], buckets=()))


def test_what_does_not_go_together_is_a_sentence():
    with pytest.raises(ValueError, match=r"the tasks are \['old'\]: give at least two sources"):
        data.join_tasks(old=OLD)
    with pytest.raises(ValueError, match=r"has the field `segments` but .* has not"):
        data.join_tasks(old=OLD, new=data.with_fields(NEW, segments=np.zeros((4, 8), np.int32)))
    flat, deep = (data.with_fields(s, extra=np.zeros((len(s), *more))) for s, more in ((OLD, ()), (NEW, (2,))))
    with pytest.raises(ValueError, match=r"`extra` has rows of shape \(\) in .* but \(2,\) in .*same number of axes"):
        data.join_tasks(old=flat, new=deep)
    with pytest.raises(ValueError, match="join the tasks before the targets"):
        data.join_tasks(old=OLD, new=dataclasses.replace(NEW, targets=lambda rows, view: {}))
    with pytest.raises(ValueError, match="tokenise the texts before the tasks are joined"):
        data.join_tasks(old=OLD, new=data.open_source({"text": ["a", "b"], "label": [0, 1]}, "train"))
    with pytest.raises(IndexError, match=r"row 11 of .* was asked for, which has 11 rows"):
        JOINED.read(np.array([11]))
