"""The families of vision networks: documented features, what stands before the ReLUs, precision, devices, memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import shapes

from jaxkd import models
from jaxkd.models import layers
from jaxkd.models.vision import efficientnet, mobilenet, shufflenet
from jaxkd.models.vision.convnext import ResponseNorm
from jaxkd.types import Variables

# Family -> (maker, its smallest options, size of images, {feature: shape without the batch} of what is documented).
CASES = {
    "resnet8x4": (
        models.resnet,
        {"depth": 8, "widen": 4, "stem": 32},
        32,
        {
            "stem": (32, 32, 32),
            "stage1": (32, 32, 64),
            "stage2": (16, 16, 128),
            "stage3": (8, 8, 256),
            "pooled": (256,),
        },
    ),
    "imagenet_resnet": (
        models.imagenet_resnet,
        {"depth": 18},
        64,
        {
            "stem": (32, 32, 64),
            "stage1": (16, 16, 64),
            "stage2": (8, 8, 128),
            "stage3": (4, 4, 256),
            "stage4": (2, 2, 512),
            "pooled": (512,),
        },
    ),
    "imagenet_resnet, small images": (
        models.imagenet_resnet,
        {"depth": 50, "small_images": True},
        32,
        {
            "stem": (32, 32, 64),
            "stage1": (32, 32, 256),
            "stage2": (16, 16, 512),
            "stage3": (8, 8, 1024),
            "stage4": (4, 4, 2048),
            "pooled": (2048,),
        },
    ),
    "wide_resnet": (
        models.wide_resnet,
        {"depth": 10, "widen": 2},
        32,
        {
            "stem": (32, 32, 16),
            "stage1": (32, 32, 32),
            "stage2": (16, 16, 64),
            "stage3": (8, 8, 128),
            "pooled": (128,),
        },
    ),
    "vgg": (
        models.vgg,
        {"depth": 8},
        64,
        {
            "stem": (64, 64, 64),
            "stage1": (32, 32, 128),
            "stage2": (16, 16, 256),
            "stage3": (8, 8, 512),
            "stage4": (4, 4, 512),
            "pooled": (512,),
        },
    ),
    "mobilenet_v1": (
        models.mobilenet_v1,
        {"widen": 0.25},
        64,
        {
            "stem": (32, 32, 8),
            "stage1": (32, 32, 16),
            "stage2": (16, 16, 32),
            "stage3": (8, 8, 64),
            "stage4": (4, 4, 128),
            "stage5": (2, 2, 256),
            "pooled": (256,),
        },
    ),
    "mobilenet_v2": (
        models.mobilenet_v2,
        {},
        64,
        {
            "stem": (32, 32, 32),
            "stage1": (16, 16, 24),
            "stage2": (8, 8, 32),
            "stage3": (4, 4, 96),
            "stage4": (2, 2, 320),
            "pooled": (1280,),
        },
    ),
    "efficientnet": (
        models.efficientnet,
        {"widen": 0.5, "tensorflow": True},
        63,
        {
            "stem": (32, 32, 16),
            "stage1": (32, 32, 8),
            "stage2": (16, 16, 16),
            "stage3": (8, 8, 24),
            "stage4": (4, 4, 56),
            "stage5": (2, 2, 160),
            "pooled": (640,),
        },
    ),
    "shufflenet_v1": (
        models.shufflenet_v1,
        {},
        32,
        {
            "stem": (32, 32, 24),
            "stage1": (16, 16, 240),
            "stage2": (8, 8, 480),
            "stage3": (4, 4, 960),
            "pooled": (960,),
        },
    ),
    "shufflenet_v2": (
        models.shufflenet_v2,
        {"widen": 0.5},
        32,
        {
            "stem": (32, 32, 24),
            "stage1": (16, 16, 48),
            "stage2": (8, 8, 96),
            "stage3": (4, 4, 192),
            "pooled": (1024,),
        },
    ),
    "convnext": (
        models.convnext,
        {"blocks": (1, 1, 2, 1), "widths": (4, 6, 8, 10)},
        64,
        {
            "stem": (16, 16, 4),
            "stage1": (16, 16, 4),
            "stage2": (8, 8, 6),
            "stage3": (4, 4, 8),
            "stage4": (2, 2, 10),
            "pooled": (10,),
        },
    ),
    "lenet": (
        models.lenet,
        {},
        32,
        {
            "stage1": (28, 28, 6),
            "stage2": (10, 10, 16),
            "hidden1": (120,),
            "pooled": (84,),
        },
    ),
    "vision_transformer": (
        models.vision_transformer,
        {"layers": 2, "width": 12, "distilled": True},
        32,
        {
            "embedding": (6, 12),
            "block0": (6, 12),
            "block1": (6, 12),
            "attention0": (3, 6, 6),
            "attention1": (3, 6, 6),
            "qkv0": (3, 6, 12),
            "qkv1": (3, 6, 12),
            "tokens": (6, 12),
            "pooled": (12,),
            "pooled_distillation": (12,),
            "logits_class": (7,),
            "logits_distillation": (7,),
        },
    ),
}
NORMED = [name for name in CASES if name not in ("convnext", "lenet", "vision_transformer")]
PREACT = [*NORMED, "lenet"]


@pytest.fixture(autouse=True, scope="module")
def fewer_blocks():
    """Of those stages that have many, for the time that tracing takes; no shape depends on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shufflenet, "_BLOCKS", (2, 2, 2))
        for name in ("_V1", "_V2"):
            groups = getattr(mobilenet, name)
            patch.setattr(mobilenet, name, tuple(g._replace(blocks=min(g.blocks, 2)) for g in groups))
        groups = efficientnet._changed(efficientnet._EFFICIENTNET, blocks=1)
        patch.setattr(efficientnet, "_EFFICIENTNET", groups)
        yield


@functools.cache
def abstract(name):
    """A family's variables and a batch, as shapes."""
    make, options, size, _ = CASES[name]
    batch = {"image": jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)}
    return jax.eval_shape(make(7, **options).init, jax.random.key(0), batch), batch


@pytest.mark.parametrize("name", CASES)
def test_features_are_the_documented_ones_in_bfloat16_and_logits_in_float32(name):
    make, options, _, expected = CASES[name]
    variables, batch = abstract(name)
    model = models.in_dtype(make(7, **options))
    out, state = jax.eval_shape(lambda v, b: model.apply(v, b, jax.random.key(0), True), variables, batch)
    if name in PREACT:
        expected = expected | {f"{n}_preact": s for n, s in expected.items() if n.startswith("stage")}
    if name in NORMED:  # what `pooled` is the mean of
        expected = expected | {
            "last": next(s for s in reversed(expected.values()) if len(s) == 3)[:2] + expected["pooled"]
        }
    logits, low = ((2, 7), jnp.dtype(jnp.float32)), jnp.dtype(jnp.bfloat16)
    found = {n: (f.shape, f.dtype) for n, f in out.features.items()}
    assert found == {n: logits if n.startswith("logits") else ((2, *s), low) for n, s in expected.items()}
    assert (out.logits.shape, out.logits.dtype) == logits
    assert state == variables.state


@pytest.mark.parametrize("name", [name for name in CASES if name != "lenet"])
def test_stages_can_be_computed_again_and_norms_go_over_a_named_axis(name):
    """On the variables of the model without either, so that their names are the same."""
    make, options, _, expected = CASES[name]
    variables, batch = abstract(name)
    model = make(7, **options, remat=True, **({"axis_name": "data"} if name in NORMED else {}))

    def apply(v, b):
        return model.apply(v, b, jax.random.key(0), True)

    program = jax.make_jaxpr(apply, axis_env=[("data", 2)])(variables, batch)
    stages = sum(bool(re.fullmatch(r"(stage|block)\d", n)) for n in expected) + (name == "vgg")
    assert sum(e.primitive.name in ("checkpoint", "remat", "remat2") for e in program.jaxpr.eqns) == stages
    norms = sum(path[-1].key == "mean" for path, _ in jax.tree.leaves_with_path(variables.state))
    assert (norms > 0) == (name in NORMED)
    assert len(re.findall(r"\bp(?:sum|mean)\w*\[", str(program))) == norms


def randomised(model, size):
    """Variables of a model, all of them away from where they start, and a batch, without compiling init."""
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal((2, size, size, 3)).astype(np.float32)}
    like = jax.eval_shape(model.init, jax.random.key(0), batch)
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), like.params)
    state = jax.tree.map(lambda x: rng.uniform(0.1, 0.9, x.shape).astype(np.float32), like.state)
    return Variables(params, state), batch


def evaluated(model, variables, batch):
    """Outputs, as numpy's."""
    return jax.device_get(jax.jit(model.apply, static_argnums=(2, 3))(variables, batch, None, False)[0])


@pytest.mark.parametrize(
    ("model", "size"),
    [(models.resnet(3, depth=8), 8), (models.vgg(3, depth=8), 8), (models.lenet(3), 20)],
    ids=["resnet", "vgg", "lenet"],
)
def test_preact_is_what_the_last_relu_of_a_stage_gets(model, size):
    out = evaluated(model, *randomised(model, size))
    for stage in (n for n in out.features if re.fullmatch(r"stage\d", n)):
        before = out.features[f"{stage}_preact"]
        assert (before < 0).any()
        np.testing.assert_array_equal(out.features[stage], np.maximum(before, 0))


def test_preact_of_a_wide_resnet_is_the_next_norm():
    model = models.wide_resnet(3, depth=10, widen=1)
    variables, batch = randomised(model, 8)
    out = evaluated(model, variables, batch)
    for stage, norm in (
        ("stage1", ("stage2_block1", "norm1")),
        ("stage2", ("stage3_block1", "norm1")),
        ("stage3", ("norm",)),
    ):
        p, s = variables.params, variables.state["batch_stats"]
        for part in norm:
            p, s = p[part], s[part]
        expected = (out.features[stage] - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]
        np.testing.assert_allclose(out.features[f"{stage}_preact"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(out.features["last"], np.maximum(out.features["stage3_preact"], 0))
    np.testing.assert_allclose(out.features["last"].mean((1, 2)), out.features["pooled"], rtol=1e-5)


@pytest.mark.parametrize("halve", [True, False])
@pytest.mark.parametrize("make", [shufflenet.BlockV1, shufflenet.BlockV2])
def test_preact_of_a_shuffle_block_is_the_same_before_relu_and_shuffle(make, halve):
    block = make(36 if halve else 24, halve)
    x = np.abs(np.random.default_rng(0).standard_normal((2, 4, 4, 24)).astype(np.float32))
    (y, before), _ = jax.device_get(jax.jit(lambda x: block.init_with_output(jax.random.key(1), x, True))(x))
    expected = np.maximum(before, 0)
    if make is shufflenet.BlockV2:
        halves = np.split(expected, 2, axis=-1)
        expected = np.stack(halves, axis=-1).reshape(y.shape)  # channels of both branches in turn
    np.testing.assert_array_equal(y, expected)
    assert (before < 0).any()


@pytest.mark.parametrize("groups", [2, 3])
def test_channel_shuffle_deals_each_group_in_turn(groups):
    x = np.arange(2 * 12).reshape(2, 12)
    assert [int(v) for v in layers.channel_shuffle(x, groups)[0]] == [
        g * (12 // groups) + i for i in range(12 // groups) for g in range(groups)
    ]


def test_flatten_is_the_order_of_pytorch():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    np.testing.assert_array_equal(layers.flatten(x), np.moveaxis(x, 3, 1).reshape(2, -1))


@pytest.mark.parametrize(("width", "rounded"), [(8, 8), (11.2, 16), (33.6, 32), (44.8, 48), (1, 8), (11.9, 16)])
def test_mobilenets_round_to_multiples_of_8_that_lose_less_than_a_tenth(width, rounded):
    assert mobilenet.rounded(width) == rounded
    assert rounded >= 0.9 * width


@pytest.mark.parametrize("small", [True, False])
def test_activations_of_mobilenets_end_at_6_but_for_small_images(small):
    """No golden value of the small one reaches 6."""
    model = models.mobilenet_v2(3, small_images=small)
    variables, batch = randomised(model, 32)
    large = {"image": 30 * batch["image"]}
    stem = np.asarray(jax.jit(lambda v, b: model.apply(v, b, None, False)[0].features["stem"])(variables, large))
    assert stem.min() == 0
    assert (stem.max() > 6) == small
    assert small or stem.max() == 6


def test_logits_of_a_distilled_transformer_are_the_mean_of_both_heads():
    model = models.vision_transformer(3, patch=8, layers=1, width=6, distilled=True)
    variables, batch = randomised(model, 16)
    out = evaluated(model, variables, batch)
    both = [out.features[f"logits_{n}"] for n in ("class", "distillation")]
    np.testing.assert_allclose(out.logits, np.mean(both, axis=0), rtol=1e-6)
    for name, head, logits in zip(("pooled", "pooled_distillation"), ("head", "head_distillation"), both, strict=True):
        layer = variables.params[head]
        np.testing.assert_allclose(out.features[name] @ layer["kernel"] + layer["bias"], logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out.features["pooled_distillation"], out.features["tokens"][:, 1])


def test_channels_compete_by_their_norms_over_the_image():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    scale, bias = np.arange(5, dtype=np.float32), np.ones(5, np.float32)
    found = ResponseNorm().apply({"params": {"scale": scale, "bias": bias}}, x)
    norms = np.sqrt(np.square(x).sum(axis=(1, 2), keepdims=True))
    expected = x + scale * x * norms / norms.mean(axis=-1, keepdims=True) + bias
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_size_counts_parameters_and_the_whole_batch():
    one, four = (models.size(models.lenet(10), {"image": np.zeros((b, 32, 32, 1), np.float32)}) for b in (1, 4))
    assert one.parameters == four.parameters == 61_706
    pairs = 25 * 6 * 28**2 + 25 * 6 * 16 * 10**2 + 400 * 120 + 120 * 84 + 84 * 10
    assert (one.flops, four.flops) == (2 * pairs, 8 * pairs)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: models.wide_resnet(10, depth=20), r"depth 6n \+ 4 but depth is 20: choose 10, 16, 22, 28 or 40"),
        (lambda: models.vgg(10, depth=12), "depth 8, 11, 13, 16, 19 but depth is 12"),
        (lambda: models.imagenet_resnet(10, depth=20), "depth 10, 14, 18, 26, 34, 50, 101, 152 but depth is 20"),
        (lambda: models.imagenet_resnet(10, deep=(32,)), "two widths and for large images, but deep is"),
        (lambda: models.imagenet_resnet(10, depth=18, widen=2), "no bottlenecks but widen is 2 and groups is 1"),
        (lambda: models.imagenet_resnet(10, depth=34, groups=4), "no bottlenecks but widen is 1 and groups is 4"),
        (lambda: models.shufflenet_v2(10, widen=3.0), "widened by 0.5, 1.0, 1.5 but widen is 3.0"),
        (lambda: models.vision_transformer(10, width=10), "3 heads do not divide the width 10"),
        (
            lambda: shapes(models.vision_transformer(10), (1, 40, 48, 3)),
            "40x48 pixels do not divide into patches of 16",
        ),
    ],
)
def test_impossible_networks_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
