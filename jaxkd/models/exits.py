"""Exits on the way through a network: classifiers on features of its stages, each of which stands at its own depth."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.keys import fold_name
from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Dense, conv_norms
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables

EXITS, NETWORK = "exits", "network"
"""Entries of params and state that hold the exits, by the names of their features, and the network itself."""


class Exit(nn.Module):
    """A bottleneck and a linear classifier on one feature.

    Maps pass through 3x3 convolutions of stride 2 with batch norm and ReLU until they are no larger than the deepest
    map, then one to the deepest width, and their mean over space is the hint. Other features [B, ..., D] pass through
    their mean over the middle axes and one dense layer with ReLU.

    Attributes:
      num_classes: K.
      width: Channels of the hint: those of the deepest feature.
      halvings: Number of convolutions of stride 2.
      axis_name: Axis over which batch norm takes its statistics together, or None.
    """

    num_classes: int
    width: int
    halvings: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """[B, H, W, C] or [B, ..., D] -> logits [B, K] and the feature `hint` [B, width]."""
        if x.ndim == 4:
            put = conv_norms(train, self.axis_name)
            for i in range(self.halvings):
                x = nn.relu(put(x, x.shape[-1], f"half{i + 1}_{{}}", stride=2))
            x = nn.relu(put(x, self.width, "last_{}"))
            x = jnp.mean(x, axis=(1, 2))
        else:
            x = nn.relu(Dense(self.width, name="dense")(jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))))
        return Outputs(Dense(self.num_classes, name="head")(x), {"hint": x})


def with_exits(
    model: Model, features: Sequence[str], num_classes: int, *, deepest: str = "pooled", axis_name: str | None = None
) -> Model:
    """Model with an exit on each of some features: a bottleneck to the deepest feature's width, and a classifier.

    Its own logits stay the deepest exit's. `models.at_head(model, "stage1")` is the network up to an exit, with the
    same variables, of which `jit` leaves out what lies deeper; `without_exits` gives the plain network back.

    Args:
      model: Any network with named features.
      features: Names of features on the way, [B, H, W, C] or [B, ..., D].
      num_classes: K.
      deepest: Name of the network's last feature [B, D], such as `pooled`, whose width the exits have.
      axis_name: As for other models with batch norm.

    Returns:
      A model with `logits_<feature>` [B, K] and `hint_<feature>` [B, D] among its features, whose params and state are
      {"network": ..., "exits": {feature: ...}}.

    Raises:
      ValueError: If no feature is named, or one twice; by the model, if it lacks one of them.

    Reference:
      Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
      Distillation", ICCV 2019, https://arxiv.org/abs/1905.08094
    """
    if isinstance(features, str) or not features or len(set(features)) < len(features):
        raise ValueError(f"the exits are on {features!r}: name at least one feature, each once, such as ('stage1',).")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: give the number of classes of the exits, at least 1.")

    def exits_of(outputs: Outputs) -> dict[str, Model]:
        """The exits, as the shapes of the features ask for them."""
        known = outputs.features
        for name in (*features, deepest):
            if name not in known or jnp.ndim(known[name]) < 2:
                have = ", ".join(f"{n} {tuple(x.shape)}" for n, x in known.items()) or "none"
                raise ValueError(f"the network has no feature {name!r} for exits, but {have}: name one of these.")
        maps = [x.shape for x in known.values() if jnp.ndim(x) == 4]
        smallest, width = min((shape[1] for shape in maps), default=1), known[deepest].shape[-1]
        found = {}
        for name in features:
            side, halvings = known[name].shape[1], 0
            while known[name].ndim == 4 and side > smallest:
                side, halvings = (side + 1) // 2, halvings + 1
            found[name] = from_linen(Exit(num_classes, width, halvings, axis_name), inputs=("x",))
        return found

    def init(key: jax.Array, batch: Batch) -> Variables:
        own = as_variables(model.init(fold_name(key, NETWORK), batch))
        seen = jax.eval_shape(lambda own: model.apply(own, batch, None, False)[0], own)
        made = {
            name: each.init(fold_name(key, f"{EXITS}/{name}"), {"x": jnp.zeros(seen.features[name].shape)})
            for name, each in exits_of(seen).items()
        }
        return Variables(
            {NETWORK: own.params, EXITS: {name: v.params for name, v in made.items()}},
            {NETWORK: own.state, EXITS: {name: v.state for name, v in made.items()}},
        )

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        params, state = as_variables(variables)
        outputs, network = model.apply(without_exits(variables), batch, key, train)
        features, exits = dict(outputs.features), {}
        for name, each in exits_of(outputs).items():
            own = Variables(params[EXITS][name], state[EXITS][name])
            found, exits[name] = each.apply(own, {"x": outputs.features[name]}, key, train)
            features |= {f"logits_{name}": found.logits, f"hint_{name}": found.features["hint"]}
        return outputs._replace(features=features), {NETWORK: network, EXITS: exits}

    return Model(init, apply)


def without_exits(variables: Variables) -> Variables:
    """Variables of a plain network from those of it with exits.

    Args:
      variables: Those of a model made by `with_exits`.

    Returns:
      The network's own.

    Raises:
      ValueError: If they are those of another model.
    """
    params, state = as_variables(variables)
    if not isinstance(params, dict) or params.keys() != {NETWORK, EXITS} or not {NETWORK, EXITS} <= dict(state).keys():
        raise ValueError("the variables have no exits: give those of a model made by models.with_exits.")
    return Variables(params[NETWORK], state[NETWORK])
