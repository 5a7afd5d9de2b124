"""SimKD's student, which ends in its teacher's last layer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.keys import fold_name
from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import conv_norms
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables


class Projector(nn.Module):
    """SimKD's projector to the teacher's last map: convolutions of 1x1, 3x3 and 1x1, each with batch norm and ReLU.

    Attributes:
      inner: Channels of the first two convolutions; the authors have half the teacher's.
      channels: The teacher's channels.
      axis_name: Axis over which batch norm takes its statistics together, or None.
    """

    inner: int
    channels: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, Cs] -> [B, H, W, channels]."""
        put = conv_norms(train, self.axis_name)
        x = nn.relu(put(x, self.inner, "{}1", kernel=1))
        x = nn.relu(put(x, self.inner, "{}2"))
        return nn.relu(put(x, self.channels, "{}3", kernel=1))


def reuse_classifier(
    student: Model,
    classifier: tuple[ArrayLike, ArrayLike],
    *,
    feature: str = "last",
    size: tuple[int, int] | None = None,
    factor: int = 2,
    axis_name: str | None = None,
) -> Model:
    """Student of SimKD: a network, a projector to its teacher's channels, and the teacher's frozen last layer.

    logits = mean_hw(f) W + b,  f = relu(BN(conv1x1(relu(BN(conv3x3(relu(BN(conv1x1(map)))))))))

    It is trained by `losses.simkd` between its feature `projected` and the teacher's last map, without labels, and
    deployed as it is.

    Args:
      student: Any network with maps; its own last layer is not used.
      classifier: Kernel [C, K] and bias [K] of the teacher's last layer.
      feature: Name of the student's last map, [B, H, W, Cs].
      size: Height and width of the teacher's last map, to which a larger one is pooled before it is projected.
      factor: C over the channels inside the projector.
      axis_name: As for other models with batch norm.

    Returns:
      A model whose params are {"student", "projector"}, whose state holds the teacher's layer as well, and whose
      outputs have the feature `projected` [B, h, w, C] and the student's.

    Raises:
      ValueError: If the classifier's shapes do not fit each other; by the model, if the student has no such map.

    Reference:
      Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
      https://arxiv.org/abs/2203.14001
    """
    shapes = [jnp.shape(part) for part in classifier]
    if len(shapes) != 2 or len(shapes[0]) != 2 or shapes[1] != shapes[0][1:]:
        raise ValueError(f"the classifier has shapes {shapes}: give the kernel [C, K] and bias [K] of the last layer.")
    channels = shapes[0][0]
    projector = from_linen(Projector(max(1, channels // factor), channels, axis_name), inputs=(feature,))

    def map_of(outputs: Outputs) -> Batch:
        x = outputs.features.get(feature)
        if x is None or x.ndim != 4:
            found = {name: value.shape for name, value in outputs.features.items()}
            raise ValueError(f"the student has no map {feature!r} [B, H, W, C] but {found}: name its last one.")
        if size is not None:
            x = numerics.adaptive_average_pool(x, (min(x.shape[1], size[0]), min(x.shape[2], size[1])))
        return {feature: x}

    def init(key: jax.Array, batch: Batch) -> Variables:
        own = student.init(fold_name(key, "student"), batch)
        seen = jax.eval_shape(lambda own: map_of(student.apply(own, batch, None, False)[0]), own)
        zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in seen.items()}
        added = projector.init(fold_name(key, "projector"), zeros)
        kept = [jnp.asarray(part, jnp.float32) for part in classifier]
        return Variables(
            {"student": own.params, "projector": added.params},
            {"student": own.state, "projector": added.state, "classifier": kept},
        )

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        params, state = as_variables(variables)
        outputs, own = student.apply(Variables(params["student"], state["student"]), batch, key, train)
        added = Variables(params["projector"], state["projector"])
        found, changed = projector.apply(added, map_of(outputs), None, train)
        logits = reused_classifier(found.logits, *state["classifier"])
        features = {**outputs.features, "projected": found.logits}
        return Outputs(logits, features), {**state, "student": own, "projector": changed}

    return Model(init, apply)


def reused_classifier(feature: ArrayLike, kernel: ArrayLike, bias: ArrayLike) -> jax.Array:
    """Logits that the teacher's frozen classifier gives for a projected map of the student, in SRRL and SimKD.

    mean_hw(f) W + b

    Args:
      feature: [B, ..., C] floating, in the teacher's channels.
      kernel: [C, K], the teacher's.
      bias: [K], the teacher's.

    Returns:
      Logits [B, K].

    Reference:
      Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
      https://arxiv.org/abs/2203.14001
    """
    x, k, b = numerics.promote(feature, kernel, bias)
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1))) @ k + b[None]
