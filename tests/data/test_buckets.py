"""Sources of tokens and their length buckets: which rows a batch has, how it is cut, and that nothing else changes."""

import collections

import jax
import numpy as np
import pytest

from jaxkd import data, metrics, parallel, train
from jaxkd.cache.write import write_targets
from jaxkd.data.buckets import choose_buckets, schedule
from jaxkd.types import Model, Outputs, Variables

tokenizers = pytest.importorskip("tokenizers")

RNG = np.random.default_rng(0)
WORDS = [" ".join(RNG.choice(["good", "bad", "film", "plot"], size)) for size in RNG.geometric(0.12, 53)]
TOKENIZER = data.train_tokenizer(WORDS, 60)
TEXTS = data.open_texts({"text": WORDS, "label": [f"{i % 3}" for i in range(len(WORDS))]})
BATCH = 8
MEASURED = {"accuracy": metrics.accuracy, "nll": metrics.nll}


def source(buckets=3, **options):
    return data.tokenise(TEXTS, TOKENIZER, max_length=48, buckets=buckets, **options)


BUCKETED, PADDED = source(), source(None)


def test_a_source_of_tokens():
    assert (len(BUCKETED), BUCKETED.num_classes, BUCKETED.class_names) == (53, 3, ("0", "1", "2"))
    assert (len(BUCKETED.buckets), BUCKETED.buckets[-1], PADDED.buckets) == (3, *PADDED.buckets, PADDED.buckets)
    batch = BUCKETED.read(np.array([5, 2]))
    expected = TOKENIZER([WORDS[5], WORDS[2]], max_length=48).tokens
    for row, tokens in enumerate(expected):
        np.testing.assert_array_equal(batch["tokens"][row][batch["token_mask"][row]], tokens)
        assert (batch["tokens"][row][len(tokens) :] == TOKENIZER.pad).all()
    assert batch["label"].tolist() == [2, 2]
    assert {k: (v.dtype.name, v.ndim) for k, v in batch.items()} == {
        "tokens": ("int32", 2),
        "token_mask": ("bool", 2),
        "label": ("int32", 1),
        "id": ("int32", 1),
    }
    pairs = data.tokenise(data.open_texts({"premise": ["a"], "hypothesis": ["b"]}), TOKENIZER, max_length=48)
    assert pairs.read(np.array([0]))["segments"].sum() > 1


def test_buckets_with_the_least_padding():
    lengths = np.array([3, 5, 9, 20, 21, 60])
    assert choose_buckets(lengths, 1) == (60,)
    assert choose_buckets(lengths, 3, 64) == (8, 24, 64)
    assert choose_buckets(lengths, 9, 64) == (8, 16, 24, 64)
    assert choose_buckets(np.array([5]), 4) == (5,)
    many = RNG.integers(1, 100, 300)
    best = min(
        sum(min(b for b in (i, j, 104) if b >= n) for n in many) for j in range(8, 104, 8) for i in range(8, j, 8)
    )
    assert sum(min(b for b in choose_buckets(many, 3, 104) if b >= n) for n in many) == best
    with pytest.raises(ValueError, match="buckets is 0"):
        source(0)
    with pytest.raises(ValueError, match=r"buckets are \[8\] but the longest text of texts"):
        source((8,))


def test_what_remains_of_short_rows_goes_with_longer_ones():
    bucket = np.array([0, 2, 0, 1, 0, 2, 0])
    rows, numbers = schedule(np.arange(7), bucket, 3, 3)
    assert rows.tolist() == [0, 2, 4, 6, 3, 1, 5]
    assert numbers.tolist() == [0, 2, 2]
    rows, numbers = schedule(np.arange(5), np.array([0, 0, 0, 1, 0]), 3, 3)  # nothing is cut in the last one
    assert (rows.tolist(), numbers.tolist()) == ([0, 1, 2, 4, 3], [0, 1])


def test_an_epoch_has_each_row_once_in_batches_of_one_length():
    steps = data.steps_per_epoch(BUCKETED, BATCH)
    batches, dropped = data.train_batches(BUCKETED, BATCH, seed=3), collections.Counter()
    for epoch in range(12):
        seen = [batches[epoch * steps + k] for k in range(steps)]
        ids = np.concatenate([batch["id"] for batch in seen])
        assert len(set(ids)) == len(ids) == steps * BATCH
        dropped.update(set(range(53)) - set(ids))
        shapes = [batch["tokens"].shape[1] for batch in seen]
        assert set(shapes) <= set(BUCKETED.buckets)
        assert shapes != sorted(shapes)
        for batch in seen:
            assert (batch["token_mask"].sum(1) == BUCKETED.lengths[batch["id"]]).all()  # nothing but padding is cut
            assert (batch["view"] == epoch).all()
    assert max(dropped.values()) < 7  # no row is left out in all epochs, neither the longest
    assert any(BUCKETED.lengths[row] < 10 for row in dropped)
    again = data.train_batches(source(), BATCH, seed=3)[17]
    jax.tree.map(np.testing.assert_array_equal, dict(again), dict(batches[17]))


def test_short_texts_are_padded_less():
    def padding(source):
        batches = data.train_batches(source, BATCH, seed=0)
        return sum((~batches[k]["token_mask"]).sum() for k in range(data.steps_per_epoch(source, BATCH)))

    assert padding(BUCKETED) < 0.6 * padding(PADDED)


@pytest.mark.parametrize("batches", [lambda *a, **k: data.train_batches(*a, seed=1, **k), data.eval_batches])
def test_processes_read_parts_of_the_same_batch(batches):
    whole = batches(BUCKETED, BATCH)
    parts = [batches(BUCKETED, BATCH, process_index=i, process_count=2) for i in range(2)]
    for k in range(6):
        for field, values in whole[k].items():
            np.testing.assert_array_equal(np.concatenate([part[k][field] for part in parts]), values)


def test_bundles_are_cut_to_the_longest_of_their_batches():
    batches = data.train_batches(BUCKETED, BATCH, seed=1)
    bundle, parts = data.bundles(batches, [range(1, 4)])[0], [batches[k] for k in range(1, 4)]
    assert bundle["tokens"].shape[2] == max(part["tokens"].shape[1] for part in parts)
    for k, part in enumerate(parts):
        np.testing.assert_array_equal(bundle["tokens"][:, k, : part["tokens"].shape[1]], part["tokens"])
        assert bundle["token_mask"][:, k].sum() == part["token_mask"].sum()


def test_a_table_on_the_device_gives_the_same_batches():
    fields, rows = data.table(BUCKETED)
    read = jax.jit(train.multistep.from_table(lambda state, teacher, batch: batch))
    ours, theirs = data.train_batches(BUCKETED, BATCH, seed=1), data.train_batches(rows, BATCH, seed=1)
    spans = [range(1, 4)]
    pairs = [(ours[k], theirs[k]) for k in (0, 3)]
    pairs.append((data.bundles(ours, spans)[0], data.bundles(theirs, spans)[0]))
    for expected, row in pairs:
        found = read(None, (None, fields), row)
        assert set(found) == set(expected)
        for field, values in expected.items():
            np.testing.assert_array_equal(found[field], values)


def test_an_evaluation_has_each_row_once_and_the_same_metrics():
    table = RNG.standard_normal((60, 3)).astype(np.float32)

    def measured(batch):
        mask = batch["token_mask"][..., None]
        logits = (table[batch["tokens"]] * mask).sum(1) / mask.sum(1)
        found = {name: metric(Outputs(logits), Outputs(None), batch) for name, metric in MEASURED.items()}
        return found, logits

    results = []
    for one in (BUCKETED, PADDED):
        batches = list(data.eval_batches(one, 16))
        assert len(batches) == 4
        sums, logits = zip(*map(measured, batches), strict=True)
        total = metrics.values(jax.tree.map(lambda *x: np.sum(np.stack(x), axis=0), *sums))
        ids, mask = (np.concatenate([batch[field] for batch in batches]) for field in ("id", "mask"))
        assert sorted(ids[mask]) == list(range(53))
        results.append((total, np.concatenate(logits)[mask][np.argsort(ids[mask])]))
    assert len({batch["tokens"].shape for batch in data.eval_batches(BUCKETED, 16)}) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_subsets_keep_their_lengths():
    few = data.few_labels(BUCKETED, 4)
    assert (few.lengths == few.read(np.arange(12))["token_mask"].sum(1)).all()
    joined = data.join_tasks(old=few, new=BUCKETED)
    for k in range(4):
        batch = data.train_batches(joined, BATCH, seed=0)[k]
        assert (batch["token_mask"].sum(1) == joined.lengths[batch["id"]]).all()
    held = data.in_memory(few)
    assert data.train_batches(held, 4, seed=0)[0]["tokens"].shape[1] in BUCKETED.buckets


def test_values_of_tokens_are_cut_with_them():
    encoded = TOKENIZER(WORDS, max_length=48)
    labels = [np.where(words < 0, -100, words % 2).astype(np.int32) for words in encoded.words]
    soft = [RNG.standard_normal((len(words), 2)).astype(np.float32) for words in encoded.words]
    options = {"pad": 0, "vocabulary": 60, "buckets": 3, "num_classes": 2}
    found = data.from_tokens(TEXTS, encoded, per_token={"label": (labels, -100), "soft": (soft, 0.0)}, **options)
    assert (found.num_classes, found.task, found.class_names) == (2, "tokens", ())
    batch = data.train_batches(found, BATCH, seed=0)[0]
    assert batch["label"].shape == batch["tokens"].shape == batch["soft"].shape[:2]
    for row, number in enumerate(batch["id"]):
        np.testing.assert_array_equal(batch["label"][row][batch["token_mask"][row]], labels[number])
    assert (batch["label"][~batch["token_mask"]] == -100).all()
    for rows, message in ((labels[:-1], "`label` has 52 rows"), ([labels[0][:-1], *labels[1:]], "values in row 0 of")):
        with pytest.raises(ValueError, match=message):
            data.from_tokens(TEXTS, encoded, per_token={"label": (rows, -100)}, **options)


def test_ids_outside_the_vocabulary_are_refused_on_the_host():
    with pytest.raises(
        ValueError, match=r"row \d+ of texts.* has the token \d+, but the network has embeddings of 0..6"
    ):
        source(vocabulary=7)
    with pytest.raises(ValueError, match="vocabulary is -1"):
        source(vocabulary=-1)


def test_what_was_cut_and_what_is_empty_is_said(caplog):
    texts = data.open_texts({"text": ["good " * 30, "", "bad"]})
    data.tokenise(texts, TOKENIZER, max_length=8)
    assert caplog.messages == [
        "1 of the 3 texts of texts[all] have more than 8 tokens and are cut.",
        "1 of the 3 texts of texts[all] have no tokens but the special ones.",
    ]
    with pytest.raises(ValueError, match=r"texts\[all\]: row 0 has 32 tokens, but at most 8 are allowed"):
        data.tokenise(texts, TOKENIZER, max_length=8, too_long="refuse")


def test_cached_outputs_of_tokens_need_one_length(tmp_path):
    def apply(variables, batch, key, train):
        x = batch["tokens"] * 1.0
        return Outputs(x[:, :3], {"pooled": x[:, :2], "states": x[:, :, None]}), {}

    options = {"plan": parallel.with_jit(parallel.make_mesh(jax.devices()[:1])), "prepare": lambda batch: dict(batch)}
    options |= {"views": 1, "batch_size": BATCH, "made_with": {}, "features": ("pooled", "states")}
    with pytest.raises(
        ValueError, match=r"`states` of the teacher has a value for each token, but batches of .* 3 len"
    ):
        write_targets(tmp_path / "targets", BUCKETED, Model(None, apply), Variables({}, {}), **options)
