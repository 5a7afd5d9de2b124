"""Search among texts: the tasks, the measures, the floors, the table."""

import jax
import numpy as np
import pytest

from jaxkd import data, models
from jaxkd.data import Texts
from jaxkd.experiment import embedders, retrieval


def texts(*lines, labels=None, name="lines"):
    names = ("a", "b", "c") if labels is not None else ()
    labels = None if labels is None else np.array(labels, np.int32)
    return Texts(name, list(lines), np.arange(len(lines), dtype=np.int32), labels=labels, class_names=names)


def test_halves_are_cut_between_words_and_short_or_repeated_texts_are_left_out():
    task = retrieval.halves(texts("one two three four five", "too short here", "a b c d", "a b c d"))
    assert (task.queries, task.candidates) == (["one two three", "a b"], ["four five", "c d"])
    np.testing.assert_array_equal(task.right, np.eye(2))
    with pytest.raises(ValueError, match="lines has 1 different texts of at least four words"):
        retrieval.halves(texts("a b c d", "a b c d"))


def test_texts_search_for_their_label_and_those_that_are_known_do_not_ask():
    task = retrieval.same_label(texts("x", "y", labels=(0, 1)), texts("p", "y", "q", labels=(1, 1, 0)))
    assert task.queries == ["x"]
    np.testing.assert_array_equal(task.right, [[False, False, True]])
    with pytest.raises(ValueError, match="no classes: use --task halves"):
        retrieval.same_label(texts("x"), texts("y", labels=(0,)))


def test_measures_are_average_precision_and_recall_of_the_first_ten():
    right = np.zeros((3, 12), bool)
    right[0, [0, 2]], right[1, 11] = True, True  # nothing is right for the last query
    task = retrieval.Task(["q"] * 3, ["c"] * 12, right, both_ways=False)
    scores = np.tile(-np.arange(12.0), (3, 1))
    found = retrieval.search(task, lambda queries, candidates: scores)
    np.testing.assert_allclose(found, [(np.mean([1, 2 / 3]) + 1 / 12) / 2, 0.5])


def test_with_one_right_candidate_it_is_the_mean_reciprocal_rank_of_both_directions():
    scores = np.array([[0.9, 0.1, 0.95], [0.2, 0.8, 0.1], [0.3, 0.7, 0.5]])
    task = retrieval.Task(["q"] * 3, ["c"] * 3, np.eye(3, dtype=bool), both_ways=True)
    there, back = (1 / 2 + 1 + 1 / 2) / 3, (1 + 1 + 1 / 2) / 3
    np.testing.assert_allclose(retrieval.search(task, lambda q, c: scores).precision, (there + back) / 2)


def test_vectors_of_words_are_found_in_a_package_and_frequent_words_weigh_less(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    folder = tmp_path / "my_words"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"0 \.npy and 0 \.parquet"):
        embedders.word_vectors("my_words")
    np.save(folder / "vectors.npy", np.eye(3, 4, dtype=np.float32))
    pq.write_table(pa.table({"index": ["the", "cat", "sat"]}), folder / "words.parquet")
    found = embedders.word_vectors("my_words")
    assert (found.width, found.words) == (4, 3)
    np.testing.assert_allclose(found.embed(["The cat", "dog"]), [[np.log(2), np.log(3), 0, 0], [0] * 4], rtol=1e-6)
    with pytest.raises(ImportError, match="pip install no-such-words"):
        embedders.word_vectors("no_such_words")


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_tokenizer(["a cat sat", "the dog ran"], 60, min_frequency=1)


def test_texts_of_all_lengths_are_embedded_in_their_order_and_as_alone(tokenizer):
    model = models.static_embeddings(vocabulary=tokenizer.size, width=3)
    table = np.random.default_rng(0).standard_normal((tokenizer.size, 3)).astype(np.float32)
    variables = models.with_embedding(
        models.init(model, jax.random.key(0), {"tokens": np.zeros((1, 2), np.int32), "token_mask": np.ones((1, 2))}),
        table,
    )
    embed = embedders.Embedder(tokenizer, model, variables, max_length=16)
    lines = ["the dog ran the dog ran the dog", "cat", "a cat sat", "the dog sat on a cat and ran", "dog"]
    rows = [table[tokens].mean(0) for tokens in tokenizer(lines, max_length=16).tokens]
    np.testing.assert_allclose(embed(lines), [row / np.linalg.norm(row) for row in rows], rtol=1e-5)


def test_each_token_of_a_vocabulary_is_a_text(tokenizer):
    source, special = embedders.single_tokens(tokenizer)
    rows = source.read(np.arange(source.size))
    assert source.size == tokenizer.size
    assert special == [2, 3]  # [CLS] and [SEP]
    np.testing.assert_array_equal(rows["tokens"], [[2, token, 3] for token in range(tokenizer.size)])
