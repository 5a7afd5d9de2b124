"""How a network of PyTorch's reaches the library: its name and its state dict in, logits and features out.

`run(source, name, tensors, x, arguments=None) -> (logits, features)`, for every network of models.json and
foundation.json; no mathematics of its own.
"""

import functools
import json

import jax

from jaxkd import pytorch

SOURCES = {
    "cifar100_benchmark": pytorch.CIFAR100_BENCHMARK,
    "torchvision": pytorch.TORCHVISION,
    "timm": pytorch.TIMM,
}


@functools.cache
def made(source, name, classes, arguments="{}"):
    """The model; always the same one, for JAX knows it again and traces it once."""
    return published(source, name, arguments).make(classes)


@functools.cache
def published(source, name, arguments):
    """Maker and rules of a network; of timm's by its name and arguments (as JSON)."""
    return pytorch.timm_network(name, **json.loads(arguments)) if source == "timm" else SOURCES[source][name]


def run(source, name, tensors, x, *, arguments=None):
    """Logits [B, K] and some features [B, ...].

    The features are, for the benchmark's networks, the stem, stages and pooled vector; for timm's networks that are
    given arguments (those of its `create_model`), what its `forward_features` returns, the tokens or the last map.
    With num_classes=0 the logits are the pooled features, as timm's forward returns them. Position embeddings of
    another size are interpolated.
    """
    given = dict(arguments or {})
    classes = given.pop("num_classes", None)
    given = json.dumps({key: value for key, value in given.items() if key != "pretrained"}, sort_keys=True)
    rules, batch = published(source, name, given).rules, {"image": x}
    classes = pytorch.num_classes(rules, tensors) if classes is None else classes
    model = made(source, name, classes, given)
    variables = pytorch.import_weights(model, rules, tensors, batch, adapt=arguments is not None)
    with jax.default_matmul_precision("highest"):
        outputs, _ = jax.jit(model.apply, static_argnums=(2, 3))(variables, batch, None, False)
    if source == "timm":
        last = next((n for n in ("tokens", "last", "stage4") if n in outputs.features), None)
        return outputs.logits, [] if arguments is None else [outputs.features[last]]
    stages = sorted(n for n in outputs.features if n.startswith("stage") and not n.endswith("preact"))
    named = ("stem", *stages, "pooled") if source == "cifar100_benchmark" else ()
    return outputs.logits, [outputs.features[n] for n in named]
