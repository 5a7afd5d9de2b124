"""Models of more than one modality: a fusion of networks that may lack some of them, and towers side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import numerics
from jaxkd.keys import fold_name
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables

HAS = "has_"
"""Field `has_<modality>` of a batch, [B]: false for examples that lack the modality; all have it without the field."""


def fused(
    num_classes: int, towers: Mapping[str, Model], *, feature: str = "pooled", hidden: int = 64, dropout: float = 0.3
) -> Model:
    """Classifier of several modalities, of which an example may lack some.

    logits = relu([v_1, ..., v_n] W + b) V + c,  v_m = f_m(x), or a trained vector e_m where the example lacks m

    In training each example keeps one modality alone with the probability `dropout`, drawn uniformly, so that the
    stand-ins e_m are trained and the network does not lean on one modality. In evaluation nothing is drawn.

    Args:
      num_classes: K.
      towers: Name of a modality -> the network that reads it; its own logits are not used.
      feature: Name of the feature [B, D] of each network that is fused.
      hidden: Width of the layer over the fused features.
      dropout: Probability in 0..1 with which an example keeps one modality alone in a training step.

    Returns:
      A model with params `<modality>`, `absent`, `hidden` and `head`; its features are `pooled` [B, hidden], and those
      of the networks under `<modality>/`. Examples lack a modality where the batch's field `has_<modality>` is false;
      what stands in its place, NaN included, is in no output and no gradient.

    Raises:
      ValueError: If there are fewer than two modalities, or the probability is outside 0..1; by the model, if a network
        has no such feature, or in training without a key.
    """
    if len(towers) < 2 or set(towers) & {"absent", "hidden", "head"}:
        raise ValueError(f"the modalities are {sorted(towers)}: name at least two, none absent, hidden or head.")
    if not 0 <= dropout <= 1:
        raise ValueError(f"the modality dropout is {dropout}: give a probability from 0 to 1.")

    def init(key: jax.Array, batch: Batch) -> Variables:
        own = {name: as_variables(tower.init(fold_name(key, name), batch)) for name, tower in towers.items()}
        widths = {}
        for name, tower in towers.items():
            out = jax.eval_shape(lambda v, tower=tower: tower.apply(v, batch, None, False)[0], own[name])
            widths[name] = _vector(out, feature, name).shape[-1]
        sizes = {"hidden": (sum(widths.values()), hidden), "head": (hidden, num_classes)}
        params = {name: v.params for name, v in own.items()}
        for name, size in sizes.items():
            kernel = jax.nn.initializers.he_normal()(fold_name(key, name), size, jnp.float32)
            params[name] = {"kernel": kernel, "bias": jnp.zeros(size[1])}
        params["absent"] = {name: jnp.zeros(width) for name, width in widths.items()}
        return Variables(params, {name: v.state for name, v in own.items()})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        params, state = as_variables(variables)
        vectors: dict[str, jax.Array] = {}
        features: dict[str, jax.Array] = {}
        changed: dict[str, PyTree] = {}
        for name, tower in towers.items():
            own_key = None if key is None else fold_name(key, name)
            rows = _finite_where_absent(batch, name)
            out, changed[name] = tower.apply(Variables(params[name], state[name]), rows, own_key, train)
            vectors[name] = _vector(out, feature, name)
            features |= {f"{name}/{part}": x for part, x in out.features.items()}
        there = _there(batch, tuple(towers), len(next(iter(vectors.values()))))
        if train and dropout:
            if key is None:
                raise ValueError("a training step of models.fused needs a key for its modality dropout: give one.")
            there = _dropped(fold_name(key, "modalities"), there, dropout)
        parts = [
            jnp.where(there[name][:, None], x, params["absent"][name][None].astype(x.dtype))
            for name, x in vectors.items()
        ]
        features["pooled"] = x = jax.nn.relu(_linear(jnp.concatenate(parts, axis=-1), **params["hidden"]))
        return Outputs(_linear(x, **params["head"]), features), changed

    return Model(init, apply)


def seeing(model: Model, *modalities: str, of: tuple[str, ...]) -> Model:
    """Model of `fused` that is given some of its modalities alone, whatever the batch has.

    Args:
      model: A model made by `fused`.
      *modalities: The modalities that it sees.
      of: All its modalities.

    Returns:
      A model with the same variables.

    Raises:
      ValueError: If it sees none, or one that is not among all.
    """
    if not modalities or set(modalities) - set(of):
        raise ValueError(
            f"a model of {', '.join(of)} was to see {', '.join(modalities) or 'nothing'}: name some of them."
        )

    def seen(batch: Batch) -> Batch:
        rows = len(next(iter(jax.tree.leaves(dict(batch)))))
        return {**batch, **{f"{HAS}{name}": jnp.zeros(rows, bool) for name in of if name not in modalities}}

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        return model.apply(variables, seen(batch), key, train)

    return Model(model.init, apply)


def side_by_side(towers: Mapping[str, Model]) -> Model:
    """Networks of several modalities whose outputs are compared by a loss, such as the two towers of CLIP.

    Args:
      towers: Name of a modality -> its network, whose logits [B, D] are the embedding.

    Returns:
      A model without logits, whose params and features have the modalities' names; `at_feature` evaluates one.

    Raises:
      ValueError: If there is no network.
    """
    if not towers:
        raise ValueError("there is no network to stand beside others: name at least one modality.")

    def init(key: jax.Array, batch: Batch) -> Variables:
        own = {name: as_variables(tower.init(fold_name(key, name), batch)) for name, tower in towers.items()}
        return Variables({name: v.params for name, v in own.items()}, {name: v.state for name, v in own.items()})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        params, state = as_variables(variables)
        features, changed = {}, {}
        for name, tower in towers.items():
            own_key = None if key is None else fold_name(key, name)
            out, changed[name] = tower.apply(Variables(params[name], state[name]), batch, own_key, train)
            features[name] = out.logits
        return Outputs(None, features), changed

    return Model(init, apply)


def at_feature(model: Model, name: str) -> Model:
    """Model whose logits are one of its features, such as the embedding of one modality.

    Args:
      model: Any model.
      name: Name of the feature [B, ..., D].

    Returns:
      A model with the same variables and features.

    Raises:
      ValueError: By the model, if it has no such feature.
    """

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(variables, batch, key, train)
        if name not in outputs.features:
            raise ValueError(f"the model has no feature {name!r}: it has {', '.join(outputs.features) or 'none'}.")
        return outputs._replace(logits=outputs.features[name], head=None), state

    return Model(model.init, apply)


def _vector(out: Outputs, feature: str, name: str) -> jax.Array:
    """The feature of one modality's network that is fused."""
    if feature not in out.features or out.features[feature].ndim != 2:
        known = ", ".join(f"{k} {tuple(x.shape)}" for k, x in out.features.items()) or "none"
        raise ValueError(
            f"the network of {name!r} has no vector {feature!r} to fuse: name one of {known}, by `feature=`."
        )
    x: jax.Array = out.features[feature]
    return x


def _there(batch: Batch, names: tuple[str, ...], rows: int) -> dict[str, jax.Array]:
    """Modality -> booleans [B], true where an example has it."""
    found = {name: jnp.asarray(batch.get(f"{HAS}{name}", jnp.ones(rows, bool))) for name in names}
    for name, x in found.items():
        if x.shape != (rows,) or x.dtype != bool:
            raise ValueError(f"the field {HAS}{name} has shape {x.shape} and dtype {x.dtype}: give booleans [{rows}].")
    return found


def _finite_where_absent(batch: Batch, name: str) -> Batch:
    """The batch with 0 for NaN and Inf of examples that lack a modality: in a network's gradient 0 * NaN is NaN."""
    if f"{HAS}{name}" not in batch:
        return batch
    there = jnp.asarray(batch[f"{HAS}{name}"]).astype(bool)

    def clean(x: Any) -> Any:
        if not isinstance(x, jax.Array | np.ndarray) or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        if x.shape[:1] != there.shape:
            return x
        finite = jnp.isfinite(x)
        return jnp.where(numerics.per_example(there, finite) | finite, x, 0)

    return {field: clean(x) for field, x in batch.items()}


def _dropped(key: jax.Array, there: Mapping[str, jax.Array], dropout: float) -> dict[str, jax.Array]:
    """The modalities that are kept in a training step: of some examples one alone, among those that they have."""
    rows, stacked = len(next(iter(there.values()))), jnp.stack(list(there.values()), axis=-1)
    alone = jax.random.bernoulli(fold_name(key, "alone"), dropout, (rows,))
    noise = jax.random.uniform(fold_name(key, "kept"), stacked.shape)
    kept = jnp.argmax(jnp.where(stacked, noise, -1.0), axis=-1)
    return {name: x & (~alone | (kept == m)) for m, (name, x) in enumerate(there.items())}


def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[B, D] -> [B, K], in at least float32."""
    x, kernel, bias = numerics.promote(x, kernel, bias)
    return x @ kernel + bias[None]
