"""Tensors in and out: layouts against numpy, the same bits back, and errors that say what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import assert_trees_equal

from jaxkd import models, pytorch
from jaxkd.pytorch import Rule, published
from jaxkd.types import Model, Variables

IMAGE = {"image": jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)}
VIT = models.vision_transformer(3, patch=16, layers=2, width=6, distilled=True)
CONVNEXT = models.convnext(3, blocks=(1, 1, 1, 1), widths=(2, 3, 4, 5))
RESNET = models.resnet(4, depth=8)


def filled(model):
    """Random variables, without compiling."""
    like = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), like)


@pytest.fixture(scope="module")
def exported():
    return pytorch.export_weights(filled(RESNET), published.RESNET)


@pytest.mark.parametrize(
    ("model", "rules"),
    [
        (RESNET, published.RESNET),
        (VIT, published.VIT_TIMM),
        (models.vision_transformer(3, patch=16, layers=2, width=6), published.VIT_TORCHVISION),
        (CONVNEXT, published.CONVNEXT_TORCHVISION),
        (CONVNEXT, published.CONVNEXT_TIMM),
        (models.vgg(3, depth=8), published.VGG),
    ],
    ids=["resnet", "vit, timm", "vit, torchvision", "convnext, torchvision", "convnext, timm", "vgg"],
)
def test_what_goes_out_comes_back_to_the_bit(model, rules):
    variables = filled(model)
    tensors = pytorch.export_weights(variables, rules)
    assert pytorch.num_classes(rules, tensors) == (4 if model is RESNET else 3)
    assert_trees_equal(pytorch.import_weights(model, rules, tensors, IMAGE), variables)


def test_layouts_are_those_of_pytorch(exported):
    p, s = filled(RESNET)
    conv, norm = p["stage2_block1"]["conv1"]["kernel"], s["batch_stats"]["stage2_block1"]["norm1"]
    assert exported["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
    np.testing.assert_array_equal(exported["layer2.0.conv1.weight"], np.einsum("hwio->oihw", conv))
    np.testing.assert_array_equal(exported["fc.weight"], p["head"]["kernel"].T)
    np.testing.assert_array_equal(exported["layer2.0.bn1.running_var"], norm["var"])
    np.testing.assert_array_equal(exported["layer2.0.bn1.weight"], p["stage2_block1"]["norm1"]["scale"])
    assert set(exported) == {n for n in exported if n.startswith(("conv1", "bn1", "layer", "fc"))}


def test_queries_keys_and_values_are_one_tensor_and_scales_have_axes_of_length_one():
    variables = filled(VIT)
    attention = variables.params["block1"]["attention"]
    tensors = pytorch.export_weights(variables, published.VIT_TIMM)
    parts = [attention[name]["kernel"].T for name in ("query", "key", "value")]
    np.testing.assert_array_equal(tensors["blocks.1.attn.qkv.weight"], np.concatenate(parts))
    gamma = filled(CONVNEXT)
    assert pytorch.export_weights(gamma, published.CONVNEXT_TORCHVISION)["features.3.0.layer_scale"].shape == (3, 1, 1)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_formats_become_float32_and_counters_are_left_out(exported, dtype):
    tensors = {name: x.astype(dtype) for name, x in exported.items()} | {"bn1.num_batches_tracked": np.int64(7)}
    tensors["index"] = np.arange(3)
    found = pytorch.import_weights(RESNET, published.RESNET, tensors, IMAGE)
    assert isinstance(found, Variables)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(found.params["head"]["kernel"], exported["fc.weight"].T, rtol=0.01)


def test_what_does_not_fit_is_listed_with_names_and_shapes(exported):
    tensors = dict(exported)
    tensors["layer4.0.conv1.weight"] = np.zeros((2, 3, 3, 3))
    tensors["foo.gain"] = np.zeros(5)
    tensors["fc.weight"] = np.zeros((9, 64))
    del tensors["layer1.0.bn2.running_mean"]
    with pytest.raises(ValueError, match="the tensors do not fit the model") as error:
        pytorch.import_weights(RESNET, published.RESNET, tensors, IMAGE)
    sentence = str(error.value)
    for part in (
        "without a place in the model: layer4.0.conv1.weight (2, 3, 3, 3), foo.gain (5,)",
        "missing: layer1.0.bn2.running_mean (our stage1_block1/norm2/mean) (16,)",
        "of another shape, in our layout: fc.weight (our head/kernel) (64, 9) instead of (64, 4)",
        "pass the rules of where they come from and a model of their architecture and classes",
    ):
        assert part in sentence


def test_long_lists_are_cut(exported):
    with pytest.raises(ValueError, match=r"without a place in the model: .* and \d+ more; missing: .* and \d+ more"):
        pytorch.import_weights(models.vgg(4, depth=8), published.VGG, exported, IMAGE)


def test_a_fused_tensor_of_another_length_and_a_scale_of_another_rank_are_refused():
    tensors = pytorch.export_weights(filled(VIT), published.VIT_TIMM)
    tensors["blocks.0.attn.qkv.bias"] = np.zeros(17)
    with pytest.raises(
        ValueError, match=r"blocks.0.attn.qkv.bias \(our block0/attention/value/bias\) \(5,\) instead of"
    ):
        pytorch.import_weights(VIT, published.VIT_TIMM, tensors, IMAGE)
    tensors = pytorch.export_weights(filled(CONVNEXT), published.CONVNEXT_TORCHVISION)
    tensors["features.1.0.layer_scale"] = np.zeros((2, 1, 5))
    with pytest.raises(ValueError, match=r"features.1.0.layer_scale .* \(2, 1, 5\) instead of \(2,\)"):
        pytorch.import_weights(CONVNEXT, published.CONVNEXT_TORCHVISION, tensors, IMAGE)


def test_parts_without_a_name_there_are_refused_on_the_way_out():
    with pytest.raises(
        ValueError, match=r"without a name in PyTorch: conv1/bias \(6,\), .*pass the rules of a network"
    ):
        pytorch.export_weights(filled(models.lenet(3)), (pytorch.Rule("fc", "head"),))


def test_other_trees_than_variables_are_refused_on_the_way_out():
    with pytest.raises(TypeError, match=r"the variables are a dict and no .*: pass Variables\(params, state\)"):
        pytorch.export_weights({"params": filled(RESNET).params}, published.RESNET)


def test_the_last_layer_gives_the_classes_or_a_sentence(exported):
    assert pytorch.num_classes(published.RESNET, exported) == 4
    with pytest.raises(ValueError, match=r"the last layer has the name 'linear.weight' among tensors: .*\(16,\)"):
        pytorch.num_classes(published.RESNET_LINEAR, exported)
    with pytest.raises(ValueError, match="the last layer has no name by these rules"):
        pytorch.num_classes((), exported)


NORM = "encoder.LayerNorm"
EMBEDDING = {
    "stem and module": (Rule("words", "token"), "words.weight"),
    "both with the leaf": (Rule("words.weight", "token/embedding"), "words.weight"),
    "our leaf alone": (Rule("words", "token/embedding"), "words.weight"),
    "their leaf alone": (Rule("words.weight", "token"), "words.weight"),
    "a parameter without a leaf": (Rule("words", "token/embedding"), "words"),
}


def reader(tokens=7):
    """Embedding, norm, scale of its own, and a head, as arrays; no program is compiled."""
    shapes = {
        "token": {"embedding": (tokens, 4)},
        "norm": {"scale": (4,), "bias": (4,)},
        "gain": (),
        "head": {"kernel": (4, 3), "bias": (3,)},
    }

    def init(key, batch):
        shape = lambda x: isinstance(x, tuple)  # noqa: E731
        return Variables(jax.tree.map(lambda s: jax.random.normal(key, s), shapes, is_leaf=shape), {})

    return Model(init, None)


@pytest.mark.parametrize("case", EMBEDDING)
@pytest.mark.parametrize("norm", [("weight", "bias"), ("gamma", "beta")], ids=["weight", "gamma"])
def test_rules_reach_embeddings_norms_and_parameters(case, norm):
    rule, name = EMBEDDING[case]
    rules = (rule, Rule(NORM, "norm"), Rule("layer.scale", "gain"), Rule("fc", "head"))
    rng = np.random.default_rng(0)
    shapes = {name: (7, 4), f"{NORM}.{norm[0]}": (4,), f"{NORM}.{norm[1]}": (4,), "layer.scale": ()}
    shapes |= {"fc.weight": (3, 4), "fc.bias": (3,)}
    tensors = {f"bert.{n}": np.asarray(rng.standard_normal(s), np.float32) for n, s in shapes.items()}
    found = pytorch.import_weights(reader(), rules, tensors, {})
    np.testing.assert_array_equal(found.params["token"]["embedding"], tensors[f"bert.{name}"])
    np.testing.assert_array_equal(found.params["norm"]["scale"], tensors[f"bert.{NORM}.{norm[0]}"])
    np.testing.assert_array_equal(found.params["head"]["kernel"], tensors["bert.fc.weight"].T)
    back = pytorch.export_weights(found, rules, names=tensors)
    assert back.keys() == tensors.keys()  # names that were read are written
    for key, x in tensors.items():
        np.testing.assert_array_equal(back[key], x)
    usual = {"words.weight", f"{NORM}.weight", f"{NORM}.bias", "layer.scale", "fc.weight", "fc.bias"}
    assert pytorch.export_weights(found, rules).keys() == usual


def test_rules_that_cannot_be_followed_are_refused(exported):
    for rules, error, said in (
        ((Rule("a{i}", "b{j}"),), ValueError, r"write holes .* with the same letters on either side"),
        ((Rule("a{ii}", "b{ii}"),), ValueError, r"write holes such as"),
        ((Rule("a", ("b{i}", "c")),), ValueError, "write holes such as"),
        (Rule("a", "b"), TypeError, r"a sequence of pytorch.Rule, such as \(Rule"),
        ({"a": "b"}, TypeError, "a sequence of pytorch.Rule"),
    ):
        for call in (
            lambda rules=rules: pytorch.import_weights(RESNET, rules, exported, IMAGE),
            lambda rules=rules: pytorch.export_weights(filled(RESNET), rules),
            lambda rules=rules: pytorch.num_classes(rules, exported),
        ):
            with pytest.raises(error, match=said):
                call()


def test_prefixes_are_found_by_what_fits(exported, caplog):
    caplog.set_level("INFO", logger="jaxkd")
    below = {f"module.student.{name}": x for name, x in exported.items()}
    assert pytorch.num_classes(published.RESNET, below) == 4
    found = pytorch.import_weights(RESNET, published.RESNET, below, IMAGE)
    assert_trees_equal(found, filled(RESNET))
    assert "without their prefix module.student." in caplog.text
    assert pytorch.export_weights(found, published.RESNET, names=below).keys() == below.keys()
    with pytest.raises(ValueError, match=r"place in the model: loss.center \(2,\); .*pass prefix='module.student.' or"):
        pytorch.import_weights(RESNET, published.RESNET, {**below, "loss.center": np.zeros(2)}, IMAGE)
    both = {**below, **{f"teacher.{name}": x + 1 for name, x in exported.items()}}
    with pytest.raises(ValueError, match=r"below each of 'teacher.', 'module.student.': choose by prefix="):
        pytorch.import_weights(RESNET, published.RESNET, both, IMAGE)
    assert_trees_equal(pytorch.import_weights(RESNET, published.RESNET, both, IMAGE, prefix="module.student."), found)
    with pytest.raises(ValueError, match=r"no tensor's name begins with prefix='ema.'"):
        pytorch.import_weights(RESNET, published.RESNET, both, IMAGE, prefix="ema.")
    both["teacher.fc.weight"] = np.zeros((9, 64))
    with pytest.raises(ValueError, match=r"9 outputs below 'teacher.', 4 outputs below 'module.student.'"):
        pytorch.num_classes(published.RESNET, both)
    assert pytorch.num_classes(published.RESNET, both, prefix="teacher.") == 9


def test_a_last_layer_that_does_not_fit_begins_anew_on_request(exported):
    other = {"fc.weight": np.zeros((9, 64)), "fc.bias": np.zeros(9)}
    perceptron = {"fc.0.weight": np.zeros((9, 64)), "fc.0.bias": np.zeros(9), "fc.2.weight": np.zeros((2, 9))}
    body = {name: x for name, x in exported.items() if not name.startswith("fc.")}
    key = jax.random.key(3)
    heads = []
    for head in ({}, other, perceptron, {"fc.weight": exported["fc.weight"], "fc.bias": exported["fc.bias"]}):
        tensors = body | head
        if len(head) != 2 or head is other:
            with pytest.raises(ValueError, match=r"do not fit .* to begin head anew, pass fresh='\^head/' and key="):
                pytorch.import_weights(RESNET, published.RESNET, tensors, IMAGE)
        batch = {**IMAGE, "label": np.arange(1)}
        found = pytorch.import_weights(RESNET, published.RESNET, tensors, batch, fresh="^head/", key=key)
        heads.append(np.asarray(found.params["head"]["kernel"]))
        expected = filled(RESNET)
        assert_trees_equal({**found.params, "head": 0}, {**expected.params, "head": 0})
        assert_trees_equal(found.state, expected.state)
    assert all(np.array_equal(heads[0], x) for x in heads)
    assert np.std(heads[0]) > 0
    assert not np.array_equal(heads[0], filled(RESNET).params["head"]["kernel"])
    for options, said in (
        ({"fresh": "tail", "key": key}, "no path has fresh='tail': choose among paths: "),
        ({"fresh": "(", "key": key}, r"fresh='\(' is no regular expression"),
        ({"fresh": True, "key": key}, "fresh=True is no regular expression"),
        ({"fresh": "^head/"}, r"fresh='\^head/' needs the PRNG key"),
    ):
        with pytest.raises(ValueError, match=said):
            pytorch.import_weights(RESNET, published.RESNET, exported, IMAGE, **options)
    del body["layer1.0.conv1.weight"]  # all else has to fit
    with pytest.raises(ValueError, match=r"missing: layer1.0.conv1.weight"):
        pytorch.import_weights(RESNET, published.RESNET, body, IMAGE, fresh="^head/", key=key)
    with pytest.raises(ValueError, match=r"choose the classes yourself and pass fresh='\^head/'"):
        pytorch.num_classes(published.RESNET, perceptron)


@pytest.mark.parametrize("channels", [1, 4])
def test_first_kernels_take_other_channels_on_request(exported, channels):
    image = {"image": jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)}
    with pytest.raises(ValueError, match=r"conv1.weight .* \(3, 3, 3, 16\) instead of .* pass adapt=True"):
        pytorch.import_weights(RESNET, published.RESNET, exported, image)
    found = pytorch.import_weights(RESNET, published.RESNET, exported, image, adapt=True).params["stem_conv"]["kernel"]
    rgb = np.einsum("oihw->hwio", exported["conv1.weight"])
    if channels == 1:
        np.testing.assert_allclose(found, rgb.sum(axis=2, keepdims=True), rtol=1e-6)
        wide = {**exported, "conv1.weight": np.einsum("hwio->oihw", found)}
        back = pytorch.import_weights(RESNET, published.RESNET, wide, IMAGE, adapt=True).params["stem_conv"]["kernel"]
        np.testing.assert_allclose(back.sum(axis=2, keepdims=True), found, rtol=1e-6)  # the same on equal channels
    else:
        np.testing.assert_allclose(found, rgb[:, :, [0, 1, 2, 0]] * 0.75, rtol=1e-6)


def test_positions_take_other_sizes_on_request():
    tensors = pytorch.export_weights(filled(VIT), published.VIT_TIMM)  # a grid of 2 x 2 and two tokens
    tensors["pos_embed"] = tensors["pos_embed"].copy()
    tensors["pos_embed"][:, 2:] = np.arange(4).reshape(1, 4, 1)
    image = {"image": jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)}
    with pytest.raises(ValueError, match=r"pos_embed .* \(1, 6, 6\) instead of \(1, 26, 6\).* pass adapt=True"):
        pytorch.import_weights(VIT, published.VIT_TIMM, tensors, image)
    found = pytorch.import_weights(VIT, published.VIT_TIMM, tensors, image, adapt=True).params["position"]
    np.testing.assert_array_equal(found[:, :2], tensors["pos_embed"][:, :2])
    grid = np.asarray(found[0, 2:, 0]).reshape(4, 6)
    np.testing.assert_allclose(grid.mean(), 1.5, atol=1e-5)
    np.testing.assert_allclose(grid - grid[::-1, ::-1], 2 * (grid - 1.5), atol=1e-5)  # symmetric about the middle
    assert np.all(np.diff(grid, axis=0) > 0)
    assert np.all(np.diff(grid, axis=1) > 0)
    assert grid[-1, 0] > grid[0, -1]  # rows stay rows


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"fc.bias": np.array([0, np.nan, 1, np.inf])}, ValueError, r"fc.bias holds 2 values that are not finite"),
        ({"fc.bias": np.full(4, 1e300)}, ValueError, "fc.bias holds 4 values that are not finite"),
        ({"fc.bias": np.ones(4, np.complex64)}, ValueError, "fc.bias has complex numbers, but head/bias has real"),
        ({"fc.bias": np.ones(4, np.int8)}, ValueError, "fc.bias is int8, but head/bias has floating-point numbers"),
        ({"fc.beta": np.zeros(4)}, ValueError, "both fc.bias and fc.beta have the place head/bias"),
        ({"fc.bias": {"a": 1}}, TypeError, "'fc.bias' is a dict and no named array of numbers: pass the state dict"),
        ({"fc.bias": None}, TypeError, "'fc.bias' is a NoneType and no named array"),
    ],
    ids=["nan", "large", "complex", "integers", "twice", "nested", "none"],
)
def test_numbers_that_cannot_be_the_models_are_refused(exported, changed, error, said):
    with pytest.raises(error, match=said):
        pytorch.import_weights(RESNET, published.RESNET, {**exported, **changed}, IMAGE)


def test_norms_of_nnx_modules_keep_their_statistics():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.last = nnx.BatchNorm(4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.last(self.norm(x))

    model, batch = models.from_nnx(Network), {"image": np.zeros((2, 4), np.float32)}
    rules = (Rule("bn1", "norm"), Rule("bn2", "last"))
    leaves = ("weight", "bias", "running_mean", "running_var")
    tensors = {f"bn{i}.{leaf}": np.arange(4, dtype=np.float32) + 10 * i for i in (1, 2) for leaf in leaves}
    found = pytorch.import_weights(model, rules, tensors, batch)
    np.testing.assert_array_equal(found.state["last"]["var"], np.arange(4) + 20)
    back = pytorch.export_weights(found, rules)
    assert back.keys() == tensors.keys()
    np.testing.assert_array_equal(back["bn1.running_mean"], np.arange(4) + 10)


@pytest.mark.parametrize("fused", [False, True])
def test_attention_with_an_axis_of_heads_takes_pytorchs_matrices(fused):
    shapes = {n: {"kernel": (4, 2, 3), "bias": (2, 3)} for n in ("query", "key", "value")}
    shapes["out"] = {"kernel": (2, 3, 4), "bias": (4,)}
    shape = lambda x: isinstance(x, tuple)  # noqa: E731
    model = Model(lambda key, batch: Variables({"mix": jax.tree.map(jnp.zeros, shapes, is_leaf=shape)}, {}), None)
    names, rng = ("query", "key", "value"), np.random.default_rng(0)
    parts = (Rule("qkv", tuple(f"mix/{n}" for n in names)),) if fused else tuple(Rule(n, f"mix/{n}") for n in names)
    sizes = {"qkv": 18} if fused else dict.fromkeys(names, 6)
    tensors = {"proj.weight": rng.standard_normal((4, 6)), "proj.bias": rng.standard_normal(4)}
    tensors |= {f"{n}.weight": rng.standard_normal((size, 4)) for n, size in sizes.items()}
    tensors |= {f"{n}.bias": rng.standard_normal(size) for n, size in sizes.items()}
    tensors = {n: x.astype(np.float32) for n, x in tensors.items()}
    rules = (*parts, Rule("proj", "mix/out"))
    mix = pytorch.import_weights(model, rules, tensors, {}).params["mix"]
    x, value = np.ones((5, 4), np.float32), tensors["qkv.weight"][12:] if fused else tensors["value.weight"]
    heads = np.einsum("nd,dah->nah", x, mix["value"]["kernel"])
    np.testing.assert_allclose(heads.reshape(5, 6), x @ value.T, rtol=1e-6)
    mixed = np.einsum("nah,aho->no", heads, mix["out"]["kernel"])
    np.testing.assert_allclose(mixed, heads.reshape(5, 6) @ tensors["proj.weight"].T, rtol=1e-5)
    assert_trees_equal(pytorch.export_weights(Variables({"mix": mix}, {}), rules), tensors)
