"""Tensors in and out: layouts against numpy, the same bits back, and errors that say what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal

from jaxkd import models, pytorch
from jaxkd.pytorch import published
from jaxkd.types import Variables

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


def test_the_last_layer_gives_the_classes_or_a_sentence(exported):
    assert pytorch.num_classes(published.RESNET, exported) == 4
    with pytest.raises(ValueError, match=r"the last layer has the name 'linear.weight' among tensors: .*\(16,\)"):
        pytorch.num_classes(published.RESNET_LINEAR, exported)
    with pytest.raises(ValueError, match="the last layer has no name by these rules"):
        pytorch.num_classes((), exported)
