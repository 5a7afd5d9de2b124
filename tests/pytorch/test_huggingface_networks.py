"""Networks of a config.json: equal to PyTorch's, of the published sizes, and a sentence for what is not followed."""

import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models, pytorch
from jaxkd.models.text.blocks import Dropouts
from jaxkd.pytorch.huggingface import networks
from jaxkd.pytorch.huggingface.settings import Settings

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "encoders.json").read_text())["networks"]
BERT = {"model_type": "bert", "vocab_size": 11, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 6}
MODERN = {**BERT, "model_type": "modernbert", "num_hidden_layers": 4}
SHAPES = {"tokens": jax.ShapeDtypeStruct((1, 8), jnp.int32), "token_mask": jax.ShapeDtypeStruct((1, 8), bool)}
MAKERS = {"encoder": networks.encoder, "texts": networks.classifier, "tokens": networks.token_classifier}


def drawn(name, shape):
    """The tensor of a name by the rule of the golden file."""
    a = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if len(shape) <= 1:
        return 1 + 0.1 * a if name.endswith("weight") else 0.1 * a
    return a * np.sqrt(1 / np.prod(shape[1:])) if name.endswith("weight") else 0.02 * a


@pytest.mark.parametrize("name", GOLDEN)
def test_a_network_equals_pytorch_s(name):
    golden = GOLDEN[name]
    network = MAKERS[golden["head"]](golden["config"])
    batch = {"tokens": np.asarray(golden["input_ids"], np.int32)}
    batch["token_mask"] = mask = np.asarray(golden["attention_mask"], bool)
    if golden["segments"]:
        batch["segments"] = np.broadcast_to(np.arange(mask.shape[1], dtype=np.int32) >= 4, mask.shape).astype(np.int32)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        tensors = {n.removeprefix(network.prefix): drawn(n, s) for n, s in golden["tensors"]}
        variables = pytorch.import_weights(network.model, network.rules, tensors, batch)
        out, _ = jax.jit(network.model.apply, static_argnums=(2, 3))(variables, batch, None, False)
    layers = sum(feature.startswith("block") for feature in out.features)
    hidden = [out.features[n] for n in ("embedding", *(f"block{i}" for i in range(layers - 1)), "tokens")]
    assert out.logits.dtype == jnp.float64
    for state, want in zip(hidden, golden["hidden_first"], strict=True):
        np.testing.assert_allclose(state[0].ravel()[:8], want, rtol=1e-6, atol=1e-6)
    real = mask[..., None] if np.ndim(golden["logits"]) == 3 else np.ones((len(mask), 1), bool)
    np.testing.assert_allclose(np.where(real, out.logits, 0), golden["logits"], rtol=1e-6, atol=1e-6)


def count(config, layers):
    key = "n_layers" if config["model_type"] == "distilbert" else "num_hidden_layers"
    pooler = config["model_type"] not in ("distilbert", "electra", "modernbert")
    model = networks.encoder({**config, key: layers}, pooler=pooler).model
    return models.count_parameters(jax.eval_shape(model.init, jax.random.key(0), SHAPES))


@pytest.mark.parametrize(
    ("config", "layers", "size"),
    [
        ({"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1}, 12, 124_645_632),
        ({"model_type": "distilbert"}, 6, 66_362_880),
        ({"model_type": "electra"}, 12, 13_483_008),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 12, 109_486_464),
        ({"model_type": "bert", "hidden_size": 384, "intermediate_size": 1536}, 6, 22_713_216),
        ({"model_type": "modernbert"}, 22, 149_014_272),
    ],
    ids=["RoBERTa-base", "DistilBERT", "ELECTRA-small", "MPNet-base", "MiniLM-L6", "ModernBERT-base"],
)
def test_networks_have_the_published_sizes(config, layers, size):
    """All layers are of one size, but for ModernBERT's first one."""
    first = 2 if config["model_type"] == "modernbert" else 1
    one, two = (count(config, n) for n in (first, first + 1))
    assert one + (layers - first) * (two - one) == size


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {**BERT, "model_type": "t5"},
            "model_type='t5', which is no text encoder that is known here: take one of bert",
        ),
        ({"hidden_size": 8}, "model_type=None"),
        ({**BERT, "is_decoder": True}, "is_decoder=True, which is not supported: take a network with is_decoder=False"),
        ({**BERT, "add_cross_attention": True}, "add_cross_attention=True"),
        ({**BERT, "position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({**BERT, "hidden_act": "xielu"}, "hidden_act='xielu', which is not supported: .*'gelu_new'"),
        ({**BERT, "pruned_heads": {"0": [1]}}, "pruned_heads=.*, heads that were cut off"),
        ({**BERT, "quantization_config": {"bits": 4}}, "quantization_config=.*, weights of few bits"),
        ({**BERT, "auto_map": {"AutoModel": "x.Y"}}, "auto_map=.*, code of its own"),
        ({**BERT, "hidden_size": "8"}, "hidden_size='8', which should be a whole number of at least 1"),
        ({**BERT, "num_attention_heads": 3}, "num_attention_heads=3, which does not divide hidden_size=8"),
        ({**BERT, "hidden_dropout_prob": 1.0}, "hidden_dropout_prob=1.0, .*number of at least 0 and less than 1"),
        ({**BERT, "layer_norm_eps": -1}, "layer_norm_eps=-1"),
        ({**BERT, "model_type": "roberta", "max_position_embeddings": 2}, "max_position_embeddings=2, .*at least 3"),
        ({**BERT, "model_type": "distilbert", "sinusoidal_pos_embds": 1}, "sinusoidal_pos_embds=1, .*=True or"),
        ({**MODERN, "layer_types": ["full_attention"]}, "layer_types=.*, which should name .* each of its 4 layers"),
        ({**MODERN, "rope_scaling": {"type": "yarn"}}, "rope_scaling="),
        ({**MODERN, "rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type='yarn'"),
        ({**MODERN, "rope_parameters": {"rope_theta": 1.0}}, "rope_parameters=.*should be of 'full_attention' and"),
        ({**MODERN, "hidden_size": 6}, "num_attention_heads=2 of width 3, but rotary positions turn pairs"),
    ],
)
def test_what_is_not_followed_is_refused_by_its_key(config, said):
    with pytest.raises(ValueError, match=f"config.json has {said}"):
        networks.encoder(config)


def test_configs_of_older_and_newer_files_mean_the_same():
    older = {**MODERN, "global_attn_every_n_layers": 2, "global_rope_theta": 9.0, "local_rope_theta": 5.0}
    newer = {
        **MODERN,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 9.0}, "sliding_attention": {}},
    }
    newer["rope_parameters"]["sliding_attention"]["rope_theta"] = 5.0
    make = networks.FAMILIES["modernbert"].encoder
    one, two = make(Settings({**older, "local_attention": 10})), make(Settings({**newer, "local_attention": 10}))
    assert one == two
    assert (one.rotary, one.windows) == ((9.0, 5.0, 9.0, 5.0), (None, 5, None, 5))
    assert make(Settings({**older, "local_rope_theta": None})).rotary == (9.0,) * 4
    assert Settings({"id2label": {"0": "a", "1": "b", "2": "c"}}).classes(None) == 3
    assert (Settings({"num_labels": 4}).classes(None), Settings({}).classes(None)) == (4, 2)


def test_rates_of_dropout_are_the_config_s():
    bert = networks.FAMILIES["bert"]
    given = {**BERT, "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    assert bert.encoder(Settings(given)).form.dropout == Dropouts(0.3, 0.2, 0.3, 0.0, 0.3)
    assert bert.texts(Settings(given)).dropout == 0.3
    assert bert.texts(Settings({**given, "classifier_dropout": 0.0})).dropout == 0.0
    distilled = networks.FAMILIES["distilbert"]
    given = {"dropout": 0.3, "attention_dropout": 0.2, "seq_classif_dropout": 0.4}
    assert distilled.encoder(Settings(given)).form.dropout == Dropouts(0.3, 0.2, 0.0, 0.0, 0.3)
    assert distilled.texts(Settings(given)).dropout == 0.4
    modern = networks.FAMILIES["modernbert"]
    given = {**MODERN, "embedding_dropout": 0.1, "attention_dropout": 0.2, "mlp_dropout": 0.3}
    assert modern.encoder(Settings(given)).form.dropout == Dropouts(0.1, 0.2, 0.2, 0.3, 0.0)


def test_a_config_of_fewer_layers_keeps_their_kinds():
    assert networks.with_layers(BERT, (1, 3, 5))["num_hidden_layers"] == 3
    assert networks.with_layers({"model_type": "distilbert"}, (0, 5))["n_layers"] == 2
    kept = networks.with_layers(MODERN, (0, 3))
    assert (kept["num_hidden_layers"], kept["layer_types"]) == (2, ["full_attention", "full_attention"])
    with pytest.raises(ValueError, match=r"layers=\(1, 3\) leaves out ModernBERT's layer 0"):
        networks.with_layers(MODERN, (1, 3))
    for layers in ((), (3, 1), (1, 1), (12,), (-1,)):
        with pytest.raises(ValueError, match=r"should be ascending numbers of layers, 0\.\.11"):
            networks.with_layers(BERT, layers)


def test_names_of_classes_and_unknown_pools():
    made = [make({**BERT, "model_type": "xlm-roberta"}) for make in MAKERS.values()]
    assert [n.architecture for n in made] == [
        "XLMRobertaModel",
        "XLMRobertaForSequenceClassification",
        "XLMRobertaForTokenClassification",
    ]
    assert {n.prefix for n in made} == {"roberta."}
    with pytest.raises(ValueError, match="pool='max' is unknown: choose one of 'cls', 'mean'"):
        networks.embedder(BERT, pool="max")
    with pytest.raises(ValueError, match="num_classes=0 should be a whole number of at least 1"):
        networks.classifier(BERT, 0)
