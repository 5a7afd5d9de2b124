"""Programs for GPUs, lowered without one: what is in them, in which formats, and what is not."""

import collections
import contextlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxkd import kernels, losses, models, objectives, train
from jaxkd.experiment.flags import StepOptions
from jaxkd.train import multistep

AT_ONCE, ROWS = 3, 4
CONVOLUTION = re.compile(r"stablehlo\.convolution\((.*?)\) dim_numbers = (\S.*?), window.*?: \((.*?)\) -> (\S+)")
PRODUCT = re.compile(r"stablehlo\.(?:convolution|dot_general).*?: \(tensor<[^>]*x(\w+)>, .*")


def exported(precision="tf32", context=contextlib.nullcontext):
    """Text of a bundle of steps, ResNet-8 -> ResNet-8 by KD and RKD, as a GPU's compiler gets it."""
    options = StepOptions(precision=precision)
    teacher, student = (options.cast_student(models.resnet(10, depth=8)) for _ in range(2))
    term = objectives.weighted(
        label=(0.1, objectives.from_labels(losses.cross_entropy)),
        kd=(0.9, objectives.from_logits(losses.kd, temperature=4.0)),
        rkd=(1.0, objectives.from_features(losses.rkd, student="pooled", teacher="pooled")),
    )
    batch = {"image": jax.ShapeDtypeStruct((ROWS, 8, 8, 3), jnp.float32)}
    batch |= {"label": jax.ShapeDtypeStruct((ROWS,), jnp.int32)}
    parts, key = (student, teacher, term, optax.sgd(0.1, momentum=0.9)), jax.random.key(0)
    variables = jax.eval_shape(teacher.init, key, batch)
    state = jax.eval_shape(lambda key, *given: train.begin_state(*parts, key, *given), key, batch, variables)
    step = jax.jit(multistep.scan_steps(train.make_train_step(*parts)), donate_argnums=0)
    bundle = {k: jax.ShapeDtypeStruct((x.shape[0], AT_ONCE, *x.shape[1:]), x.dtype) for k, x in batch.items()}
    with options.products(), context():
        found = jax.export.export(step, platforms=["cuda"])(state, variables, bundle).mlir_module()
    return found, len(jax.tree.leaves(state))


@pytest.fixture(scope="module")
def usual():
    return exported()


def operations(text):
    return collections.Counter(re.findall(r"stablehlo\.(\w+)", text))


def test_it_is_one_program_that_never_asks_the_host_and_donates_its_state(usual):
    text, leaves = usual
    assert len(re.findall(r"func\.func public", text)) == 1
    assert operations(text)["while"] == 1, "a bundle is one loop"
    assert not re.findall(r"custom_call|callback|infeed|outfeed|send|recv", text)
    assert text.count("tf.aliasing_output") + text.count("jax.buffer_donor") == leaves


def test_it_has_no_convolution_or_product_that_is_written_for_cpus(usual):
    plain, _ = exported(context=kernels.plain)
    for name in ("convolution", "dot_general", "slice", "concatenate", "pad"):
        assert operations(usual[0])[name] == operations(plain)[name], name
    images = [numbers for _, numbers, _, _ in CONVOLUTION.findall(usual[0]) if numbers.startswith("[b,")]
    assert images
    assert {n.split("x")[0] for n in images} == {"[b, 0, 1, f]"}, "channels are last, as cuDNN likes them"


@pytest.mark.parametrize(("precision", "wanted"), [("tf32", "HIGH"), ("float32", "HIGHEST")])
def test_precision_names_the_products_of_networks_and_losses_have_float32(usual, precision, wanted):
    text = usual[0] if precision == "tf32" else exported(precision)[0]
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all(f"precision_config = [#stablehlo<precision {wanted}>" in line for line in convolutions)
    of_losses = [line for line in text.splitlines() if re.search(r"dot_general.*batching_dims", line)]
    assert of_losses, "RKD's angles"
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in of_losses)


def test_bfloat16_is_of_convolutions_while_statistics_losses_and_the_head_have_float32():
    text, _ = exported("bfloat16")
    convolutions = CONVOLUTION.findall(text)
    assert all(f"{side}".count("xbf16>") == 2 for _, _, side, _ in convolutions)
    sums = re.findall(r"stablehlo\.reduce\(.*?applies stablehlo\.add .*?: \((tensor<\S+>), ", text)
    wide = [s for s in sums if s.count("x") > 2]  # over images
    assert wide
    assert all("xf32" in s for s in wide), "sums over many numbers"
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("bf16" not in line for line in products)
