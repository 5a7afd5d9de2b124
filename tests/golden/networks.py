"""How a network of PyTorch's reaches the library: its name and its state dict in, logits and features out.

`run(source, name, tensors, x) -> (logits, features)`, for every network of models.json; no mathematics of its own.
"""

import functools

import jax

from jaxkd import pytorch

SOURCES = {
    "cifar100_benchmark": pytorch.CIFAR100_BENCHMARK,
    "torchvision": pytorch.TORCHVISION,
    "timm": pytorch.TIMM,
}


@functools.cache
def made(source, name, classes):
    """The model; always the same one, for JAX knows it again and traces it once."""
    return SOURCES[source][name].make(classes)


def run(source, name, tensors, x):
    """Logits [B, K] and, for the benchmark's networks, the features [B, ...]: stem, stages, pooled vector."""
    rules, batch = SOURCES[source][name].rules, {"image": x}
    model = made(source, name, pytorch.num_classes(rules, tensors))
    variables = pytorch.import_weights(model, rules, tensors, batch)
    with jax.default_matmul_precision("highest"):
        outputs, _ = jax.jit(model.apply, static_argnums=(2, 3))(variables, batch, None, False)
    stages = sorted(n for n in outputs.features if n.startswith("stage") and not n.endswith("preact"))
    named = ("stem", *stages, "pooled") if source == "cifar100_benchmark" else ()
    return outputs.logits, [outputs.features[n] for n in named]
