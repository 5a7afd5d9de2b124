"""Published encoders of text: PyTorch's hidden states, pooled vectors and logits from config.json and tensors."""

import importlib.util
import json
import pathlib
import zlib

import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent
NETWORKS = json.loads((GOLDEN / "huggingface.json").read_text())["models"]

_spec = importlib.util.spec_from_file_location("golden_huggingface", GOLDEN / "huggingface.py")
huggingface = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(huggingface)


def tensor(name, shape):
    """The rule of huggingface.json."""
    a = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    weight = name.endswith("weight")
    if len(shape) < 2:
        return weight + 0.1 * a
    return a * (np.sqrt(1 / np.prod(shape[1:])) if weight else 0.02)


def outputs_of(golden, dtype):
    ids = np.array(golden["input_ids"])
    inputs = {"input_ids": ids, "attention_mask": np.array(golden["attention_mask"])}
    if golden["segments"]:
        inputs["token_type_ids"] = (np.arange(ids.shape[1]) >= 4).astype(int)[None].repeat(len(ids), 0)
    return huggingface.run(golden["config"], {n: tensor(n, s).astype(dtype) for n, s in golden["tensors"]}, inputs)


@pytest.mark.parametrize(
    ("network", "dtype"), [*((name, "float64") for name in NETWORKS), ("bert_classifier", "float32")]
)
def test_hidden_states_pooled_vectors_and_logits_are_those_of_pytorch(network, dtype):
    golden = NETWORKS[network]
    found = outputs_of(golden, dtype)
    close = {"rtol": 1e-9, "atol": 1e-9} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-5}
    mask = np.array(golden["attention_mask"])[:, :, None]
    for states, expected in zip(found["hidden_states"], golden["hidden_states_masked"], strict=True):
        masked = np.asarray(states) * mask
        assert (states.dtype, list(states.shape)) == (dtype, expected["shape"])
        np.testing.assert_allclose(masked.ravel()[:8], expected["first"], **close)
        np.testing.assert_allclose([masked.mean(), masked.std()], [expected["mean"], expected["std"]], **close)
    for name in ("pooler", "logits"):
        assert name in found or name not in golden
        if name in golden:
            np.testing.assert_allclose(found[name], golden[name], **close)
    assert ("logits" in found) == ("logits" in golden)
