"""Networks with published weights: PyTorch's logits and features, its names and shapes, the published sizes, timm's
networks by name and arguments."""

import hashlib
import importlib.util
import json
import pathlib
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models, pytorch

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NETWORKS = json.loads((GOLDEN / "models.json").read_text())["models"]

_spec = importlib.util.spec_from_file_location("golden_networks", GOLDEN / "networks.py")
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)


def tensor(name, shape):
    """The rule of models.json."""
    a = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if name.endswith("running_var"):
        return 0.5 + 0.5 * np.abs(a)
    if name.endswith("running_mean"):
        return 0.1 * a
    weight = name.endswith("weight")
    if len(shape) == 1:
        return weight + 0.1 * a
    return a * (np.sqrt(1 / np.prod(shape[1:])) if weight else 0.02)


def tensors_of(source, name, shape, classes, dtype=jnp.float32):
    """Names and shapes of the network's tensors in PyTorch's layout, and its size."""
    batch = {"image": jax.ShapeDtypeStruct(shape, dtype)}
    like = jax.eval_shape(networks.made(source, name, classes).init, jax.random.key(0), batch)
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), like)
    exported = pytorch.export_weights(zeros, networks.SOURCES[source][name].rules)
    return {n: x.shape for n, x in exported.items()}, models.count_parameters(like)


def digest(named):
    """Of names and shapes."""
    return hashlib.sha256("\n".join(sorted(f"{n} {s}" for n, s in named.items())).encode()).hexdigest()[:16]


@pytest.mark.parametrize("network", NETWORKS)
def test_logits_features_names_and_size_are_those_of_pytorch(network):
    golden, (source, name) = NETWORKS[network], network.split("/")
    shape = golden["input"]["shape"]
    x = np.random.default_rng(golden["input"]["seed"]).standard_normal(shape)
    with jax.enable_x64(True):
        named, count = tensors_of(source, name, shape, 100 if source == "cifar100_benchmark" else 1000, jnp.float64)
        logits, features = networks.run(source, name, {n: tensor(n, s) for n, s in named.items()}, x)
    assert digest(named) == golden["names"]
    assert count == golden["trainable_parameters"]
    logits, features = np.asarray(logits), [np.asarray(f) for f in features]
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(logits[:, :8], golden["logits"], **close)
    np.testing.assert_allclose(logits.sum(axis=1), golden["logits_sum"], **close)
    assert list(logits.argmax(axis=1)) == golden["argmax"]
    for found, expected in zip(features, golden["features"], strict=True):
        assert list(found.shape) == expected["shape"]
        np.testing.assert_allclose(found.ravel()[:8], expected["first8"], **close)
        np.testing.assert_allclose([found.mean(), found.std()], [expected["mean"], expected["std"]], **close)


@pytest.mark.parametrize("network", ["cifar100_benchmark/resnet8", "cifar100_benchmark/vgg8"])
def test_float32_keeps_four_digits(network):
    golden, (source, name) = NETWORKS[network], network.split("/")
    shape = golden["input"]["shape"]
    named, _ = tensors_of(source, name, shape, 100)
    x = np.random.default_rng(golden["input"]["seed"]).standard_normal(shape).astype(np.float32)
    logits, features = networks.run(source, name, {n: tensor(n, s) for n, s in named.items()}, x)
    assert {x.dtype for x in (logits, *features)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(logits[:, :8], golden["logits"], rtol=1e-4, atol=1e-5)


# Trainable parameters; billions of multiply-adds for one image, where torchvision states them beside its weights
# (https://docs.pytorch.org/vision/stable/models.html); digest of names and shapes as in models.json. All but the
# multiply-adds are those of the networks built by PyTorch (torchvision 0.28, timm 1.0.31).
PUBLISHED = [
    ("torchvision/resnet50", 25_557_032, 4.089, "cf11dad974eadeaa"),
    ("torchvision/vit_b_16", 86_567_656, 17.564, "2c2360f6707280a8"),
    ("torchvision/convnext_tiny", 28_589_128, 4.456, "ddd0f74f783edf2b"),
    ("timm/mobilenetv1_100", 4_231_976, None, "04cf17640bb96433"),
    ("timm/mobilenetv2_140", 6_108_776, None, "cd6c57550c255624"),
    ("timm/convnext_tiny", 28_589_128, None, "b07384a3160b01d8"),
    ("timm/deit_small_distilled_patch16_224", 22_436_432, None, "51ebe6b2c6901ea1"),
    ("cifar100_benchmark/vgg13", 9_462_180, None, "207440f187602bb6"),
    ("cifar100_benchmark/ResNet18", 11_220_132, None, "61260526013ccd50"),
    ("cifar100_benchmark/ResNet34", 21_328_292, None, "7b2208ed5a78eac6"),
    ("cifar100_benchmark/ResNet50", 23_705_252, None, "64b781c0f527d9fc"),
]


@pytest.mark.parametrize(("network", "parameters", "pairs", "names"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_sizes_and_names_are_the_published_ones(network, parameters, pairs, names):
    source, name = network.split("/")
    small = source == "cifar100_benchmark"
    shape, classes = ((1, 32, 32, 3), 100) if small else ((1, 224, 224, 3), 1000)
    named, count = tensors_of(source, name, shape, classes)
    assert count == parameters
    assert digest(named) == names
    if pairs:
        found = models.size(networks.made(source, name, classes), {"image": jax.ShapeDtypeStruct(shape, jnp.float32)})
        assert found.parameters == parameters
        assert round(found.flops / 2e9, 3) == pairs


SMALL = json.loads((GOLDEN / "timm.json").read_text())["models"]
TINY = {"depth": 1, "embed_dim": 24, "num_heads": 2}


def shapes(name, arguments, shape, classes):
    """Names and shapes of a network's tensors in PyTorch."""
    network = pytorch.timm_network(name, **{k: v for k, v in arguments.items() if k != "num_classes"})
    batch = {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}
    like = jax.eval_shape(network.make(classes).init, jax.random.key(0), batch)
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), like)
    return {n: x.shape for n, x in pytorch.export_weights(zeros, network.rules).items()}


@pytest.mark.parametrize("name", SMALL)
def test_logits_tokens_and_names_are_those_of_pytorch(name):
    golden = SMALL[name]
    arguments, shape = golden["arguments"], golden["shape"]
    pixels = arguments.get("img_size", shape[1])
    named = shapes(name, arguments, (1, pixels, pixels, shape[3]), arguments["num_classes"])
    assert digest(named) == golden["names"]
    x = np.random.default_rng(0).standard_normal(shape)
    with jax.enable_x64(True):
        tensors = {n: tensor(n, s) for n, s in named.items()}
        logits, (tokens,) = networks.run("timm", name, tensors, x, arguments=arguments)
    logits, tokens = np.asarray(logits), np.asarray(tokens)
    close = {"rtol": 1e-6, "atol": 1e-8}
    np.testing.assert_allclose(logits[:, :8], golden["logits"], **close)
    assert list(tokens.shape) == golden["tokens"]["shape"]
    np.testing.assert_allclose(np.ravel(tokens)[:4], golden["tokens"]["first"], **close)
    np.testing.assert_allclose(
        [np.mean(tokens), np.std(tokens)], [golden["tokens"]["mean"], golden["tokens"]["std"]], **close
    )


# Digests of names and shapes of networks built by PyTorch (timm 1.0.31) with 3 classes, transformers with depth 1.
NAMES = [
    ("vit_tiny_patch16_224", 32, "cda449cf06aa68a9"),
    ("deit3_small_patch16_224", 32, "2b8a874d1a9d4ca3"),
    ("deit_tiny_distilled_patch16_224", 32, "b9442158bd148014"),
    ("vit_medium_patch16_gap_240", 32, "842c308c3876f20b"),
    ("vit_base_patch14_reg4_dinov2", 28, "76d947dec1b7ce43"),
    ("vit_giant_patch14_reg4_dinov2", 28, "defb114d2a0d481b"),
    ("vit_so400m_patch14_siglip_224", 28, "2364d8b620725597"),
    ("vit_so150m2_patch16_reg1_gap_256", 32, "cc9f16d809b9afdb"),
    ("vit_xsmall_patch16_clip_224", 32, "cbab7a52280c3719"),
    ("vit_small_patch16_dinov3_qkvb", 32, "9e128de25bb48391"),
    ("eva02_tiny_patch14_224", 28, "7554d00094942de7"),
    ("eva_giant_patch14_224", 28, "3a7f9f9c6cba408b"),
    ("vit_base_patch16_radio_v3", 32, "e34d436bf13ac320"),
    ("test_vit2", 32, "b669e0fc5ad5cfb9"),
    ("resnet10t", 32, "49ddcf95b95bcf79"),
    ("resnet26d", 32, "2b07c7240bd3a9be"),
    ("efficientnet_b0", 32, "b7d941339ed21929"),
    ("tf_efficientnet_lite0", 32, "2da21413a0ce0bee"),
    ("mobilenetv3_large_100", 32, "6655ba422bf4fc57"),
    ("mnasnet_050", 32, "95c6d1e05e5cfa1b"),
    ("convnext_atto", 32, "39c9f6a3a254e2bf"),
    ("convnextv2_atto", 32, "7adc75dde15b0271"),
    ("convnextv2_tiny", 32, "a388991da40f16cb"),
]


@pytest.mark.parametrize(("name", "pixels", "names"), NAMES, ids=[row[0] for row in NAMES])
def test_names_say_the_architecture(name, pixels, names):
    arguments = {"depth": 1} if name.startswith(("vit", "deit", "eva", "test_vit")) else {}
    assert digest(shapes(name, arguments, (1, pixels, pixels, 3), 3)) == names


def test_positions_of_another_size_are_those_that_an_import_interpolates():
    network, large, small = (
        pytorch.timm_network("vit_small_patch14_reg4_dinov2", **TINY),
        (1, 42, 42, 3),
        (1, 28, 56, 3),
    )
    model, batch = network.make(0), {"image": np.ones(small, np.float32)}
    named = shapes("vit_small_patch14_reg4_dinov2", TINY, large, 0)
    tensors = {n: tensor(n, s).astype(np.float32) for n, s in named.items()}
    variables = pytorch.import_weights(
        model, network.rules, tensors, {"image": jax.ShapeDtypeStruct(large, jnp.float32)}
    )
    imported = pytorch.import_weights(model, network.rules, tensors, batch, adapt=True)
    assert imported.params["position"].shape == (1, 8, 24)
    embedding = jax.jit(lambda v: model.apply(v, batch, None, False)[0].features["embedding"])
    np.testing.assert_allclose(embedding(variables), embedding(imported), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("vit_small_patch14_dinov9", {}, "is no network of timm's that is known here: choose a vision transformer"),
        ("vit_small_patch14_dinov2", {"window": 3}, "is given window: arguments known here are "),
        ("vit_small_patch14_dinov2", {"global_pool": "prr"}, "global_pool='prr': choose one of 'token', 'avg', "),
        ("vit_tiny_patch16_224", {"class_token": False}, "a pooling of the first token but no class token"),
        ("resnet18", {"width": 3}, "resnet18 is given {'width': 3}: arguments known here are "),
    ],
)
def test_what_is_not_known_is_said(name, arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        pytorch.timm_network(name, **arguments).make(3)
