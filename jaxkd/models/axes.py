"""Axes of a network's arrays that run along the same channels, so that channels can be selected or reordered in all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.types import PyTree, Variables, as_variables, leaf_name


class Heads(NamedTuple):
    """Channels of one attention, which lie head by head.

    Attributes:
      number: Heads A; each has D / A channels of both kinds.
      query_key: Name of the channels of queries and keys.
      value: Name of the channels of values.
      ordered: Whether channels of queries and keys keep their order inside a head, since rotary positions turn pairs of
        them, or one norm is for the queries of all heads.
    """

    number: int
    query_key: str
    value: str
    ordered: bool = False


class Axes(NamedTuple):
    """Names of the channels along each axis of each array.

    Channels of one name are the same ones: wherever the name stands, they are selected and reordered together. For a
    network of one's own: `Axes({"params/hidden/kernel": (None, "hidden"), "params/head/kernel": ("hidden", None)})`.

    Attributes:
      names: Path of an array, such as "params/dense1/kernel" or "state/batch_stats/stem_norm/mean" -> a name for each
        axis, or None for an axis that stays as it is: pixels, classes, tokens. Inputs come before outputs.
      heads: Attentions.
    """

    names: Mapping[str, tuple[str | None, ...]]
    heads: tuple[Heads, ...] = ()


def leaves_of(variables: Variables) -> dict[str, Any]:
    """Arrays of variables by their paths.

    Args:
      variables: A network's variables.

    Returns:
      Path, such as "params/head/kernel" -> array.
    """
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(as_variables(variables))}


def channel_counts(variables: Variables, axes: Axes) -> dict[str, int]:
    """Numbers of channels, checked to be the same wherever a name stands.

    Args:
      variables: A network's variables.
      axes: Its axes.

    Returns:
      Name -> number of channels, in the order of `axes`.

    Raises:
      ValueError: If an array has no axes, or another number of them, or channels of one name differ in number.
    """
    counts: dict[str, tuple[int, str]] = {}
    leaves = leaves_of(variables)
    for path, leaf in leaves.items():
        if path not in axes.names or len(axes.names[path]) != jnp.ndim(leaf):
            known = f"names {len(axes.names[path])} axes of it" if path in axes.names else "does not name it"
            raise ValueError(f"{path} has shape {jnp.shape(leaf)}, but `axes` {known}: name each axis, or give None.")
    for path in (path for path in axes.names if path in leaves):
        for name, size in zip(axes.names[path], jnp.shape(leaves[path]), strict=True):
            if name is None:
                continue
            if counts.setdefault(name, (size, path))[0] != size:
                raise ValueError(
                    f"{path} has {size} channels {name!r}, but {counts[name][1]} has {counts[name][0]}: give axes of "
                    "this network."
                )
    return {name: size for name, (size, _) in counts.items()}


def take_channels(variables: Variables, axes: Axes, indices: Mapping[str, Any]) -> Variables:
    """Variables with some of the channels, or all in another order.

    Args:
      variables: A network's variables.
      axes: Its axes.
      indices: Name of channels -> numbers of those to take, in their new order; all stay where a name is missing.

    Returns:
      The variables.

    Raises:
      ValueError: As for `channel_counts`; or if there are no channels of a name, or no such ones.
    """
    variables, counts = as_variables(variables), channel_counts(variables, axes)
    for name, numbers in indices.items():
        if name not in counts:
            raise ValueError(f"there are no channels {name!r}: they are {', '.join(counts)}.")
        if len(numbers) and not 0 <= min(numbers) <= max(numbers) < counts[name]:
            raise ValueError(f"channels {name!r} are 0..{counts[name] - 1}, but {max(numbers)} was asked for.")

    def take(path: Sequence[Any], leaf: Any) -> Any:
        for axis, name in enumerate(axes.names[leaf_name(path)]):
            if name is not None and name in indices:
                leaf = jnp.take(leaf, jnp.asarray(indices[name]), axis=axis)
        return leaf

    return jax.tree_util.tree_map_with_path(take, variables)


def plain_axes(variables: Variables) -> Axes:
    """Axes of a network whose layers follow each other: `models.mlp`, `models.convnet`.

    Args:
      variables: Its variables: layers with numbers in their names, norms named like their convolutions, and `head`.

    Returns:
      The axes; channels have the names of the layers that make them.
    """
    variables = as_variables(variables)
    layers = [name for name, layer in variables.params.items() if "kernel" in layer and name != "head"]
    layers.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    names: dict[str, tuple[str | None, ...]] = {}
    before: str | None = None
    for name in layers:
        names |= _layer(variables, name, before, name)
        norm = name.replace("conv", "norm")
        names |= _vectors(variables, norm, name) if norm != name else {}
        before = name
    return _checked(variables, Axes(names | _layer(variables, "head", before, None)))


def resnet_axes(variables: Variables) -> Axes:
    """Axes of `models.resnet` and `models.imagenet_resnet`.

    Blocks without a convolution in their shortcut add to the channels that they read, so that these are tied.

    Args:
      variables: The network's variables.

    Returns:
      The axes; channels are called `stem`, `stage2`, ... along the shortcuts and `stage1_block1/conv1` inside blocks.

    Raises:
      ValueError: If it is no such network; if its convolutions are in groups.
    """
    variables = as_variables(variables)
    names: dict[str, tuple[str | None, ...]] = {}
    if "stem_conv" not in variables.params:
        raise ValueError(f"the network is no ResNet: its params are {', '.join(variables.params) or 'empty'}.")
    before: str | None = None
    for n in ("1", "2") if "stem_conv1" in variables.params else ():  # a deep stem
        names |= _layer(variables, f"stem_conv{n}", before, f"stem_conv{n}")
        names |= _vectors(variables, f"stem_norm{n}", f"stem_conv{n}")
        before = f"stem_conv{n}"
    names |= _layer(variables, "stem_conv", before, "stem") | _vectors(variables, "stem_norm", "stem")
    stream = "stem"
    places = (re.fullmatch(r"stage(\d+)_block(\d+)", name) for name in variables.params)
    for place in sorted((p for p in places if p), key=lambda p: (int(p[1]), int(p[2]))):
        block, after = place[0], stream
        if "shortcut_conv" in variables.params[block]:
            after = f"stage{place[1]}"
            names |= _layer(variables, f"{block}/shortcut_conv", stream, after)
            names |= _vectors(variables, f"{block}/shortcut_norm", after)
        last, before = 3 if "conv3" in variables.params[block] else 2, stream
        for number in range(1, last + 1):
            channels = after if number == last else f"{block}/conv{number}"
            names |= _layer(variables, f"{block}/conv{number}", before, channels)
            names |= _vectors(variables, f"{block}/norm{number}", channels)
            before = channels
        stream = after
    return _checked(variables, Axes(names | _layer(variables, "head", stream, None)))


def transformer_axes(variables: Variables, heads: int, *, rotary: bool | None = None) -> Axes:
    """Axes of transformers: `models.vision_transformer`, `models.bert` and its relatives.

    Args:
      variables: The network's variables.
      heads: Heads of each attention, which variables do not tell.
      rotary: Whether positions turn queries and keys; if None, they do where there are no position embeddings.

    Returns:
      The axes; channels are called `stream` along the shortcuts, `block0/mlp`, `block0/query_key`, `block0/value`
      inside blocks, and `token` and `pooler` where embeddings have a width of their own and a pooler follows.

    Raises:
      ValueError: If it is no such network, the heads do not divide its width, or it embeds distances for each head.
    """
    variables = as_variables(variables)
    root = "encoder/" if "encoder" in variables.params else ""
    encoder = variables.params.get("encoder", variables.params)
    blocks = sorted(int(name[5:]) for name in encoder if re.fullmatch(r"block\d+", name))
    if not blocks or "attention" not in encoder["block0"]:
        raise ValueError(f"the network is no transformer: its params are {', '.join(variables.params) or 'empty'}.")
    if "distance" in encoder:
        raise ValueError("the network embeds distances for each head, which no axes are known for: give another one.")
    width = jnp.shape(encoder["block0"]["attention"]["value"]["kernel"])[1]
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide the width {width}: give the network's own heads.")
    names: dict[str, tuple[str | None, ...]] = {}
    first = "token" if "project" in encoder else "stream"
    for path, leaf in leaves_of(Variables(encoder, {})).items():
        place = path.removeprefix("params/")
        if not re.match(r"block\d+/", place):
            names |= _outside(f"params/{root}{place}", place, jnp.ndim(leaf), first, "embedding_norm" in encoder)
    for number in blocks:
        names |= _block(variables, f"{root}block{number}", f"block{number}")
    pooled = "pooler" if "pooler" in variables.params else "stream"
    names |= _layer(variables, "pooler", "stream", "pooler") | _vectors(variables, "pooler_norm", "pooler")
    for head in ("head", "head_distillation"):
        names |= _layer(variables, head, pooled, None)
    ordered = "position" not in encoder if rotary is None else rotary
    ordered = ordered or "query_norm" in encoder["block0"]["attention"]
    of_blocks = tuple(Heads(heads, f"block{i}/query_key", f"block{i}/value", ordered) for i in blocks)
    return _checked(variables, Axes(names, of_blocks))


def _outside(path: str, place: str, rank: int, first: str, named: bool) -> dict[str, tuple[str | None, ...]]:
    """Axes of an array of a transformer that is in none of its blocks."""
    layer = place.split("/")[0]
    if layer == "project":
        return {path: (first, "stream")[-rank:]}
    if layer in ("head", "head_distillation", "pooler", "pooler_norm"):
        return {}
    of_embeddings = layer in ("token", "position", "segment", "embedding_norm") or (layer == "norm" and not named)
    return {path: (*(None,) * (rank - 1), first if of_embeddings else "stream")}


def _block(variables: Variables, path: str, name: str) -> dict[str, tuple[str | None, ...]]:
    """Axes of one block of a transformer."""
    query_key, value, inside = (f"{name}/{kind}" for kind in ("query_key", "value", "mlp"))
    names: dict[str, tuple[str | None, ...]] = {}
    for layer, before, after in (
        ("attention/query", "stream", query_key),
        ("attention/key", "stream", query_key),
        ("attention/value", "stream", value),
        ("attention/out", value, "stream"),
        ("mlp1", "stream", inside),
        ("mlp_gate", "stream", inside),
        ("mlp2", inside, "stream"),
    ):
        names |= _layer(variables, f"{path}/{layer}", before, after)
    for norm, channels in (("norm1", "stream"), ("norm2", "stream"), ("inner_norm", inside)):
        names |= _vectors(variables, f"{path}/{norm}", channels)
    for norm in ("query_norm", "key_norm"):  # of the channels of a head, the same for all heads
        names |= {where: (None,) for where, _ in _under(variables, f"{path}/attention/{norm}")}
    scales = [where for where, _ in _under(variables, path) if where.rpartition("/")[2] in ("scale1", "scale2")]
    return names | dict.fromkeys(scales, ("stream",))


def _layer(variables: Variables, path: str, before: str | None, after: str | None) -> dict[str, tuple[str | None, ...]]:
    """Axes of a dense layer or convolution, if it is there."""
    names: dict[str, tuple[str | None, ...]] = {}
    for where, leaf in _under(variables, path):
        rank = jnp.ndim(leaf)
        names[where] = (after,) if rank == 1 else (*(None,) * (rank - 2), before, after)
    return names


def _vectors(variables: Variables, path: str, channels: str) -> dict[str, tuple[str | None, ...]]:
    """Axes of a norm: its params, and its running statistics."""
    return {where: (channels,) for where, _ in _under(variables, path)}


def _under(variables: Variables, path: str) -> Iterator[tuple[str, Any]]:
    """Paths and arrays of a layer in the params and in each collection of the state."""
    roots = {"params": variables.params, **{f"state/{name}": tree for name, tree in variables.state.items()}}
    for root, tree in roots.items():
        for part in path.split("/"):
            tree = tree.get(part, {}) if isinstance(tree, Mapping) else {}
        for leaf in sorted(tree):
            yield f"{root}/{path}/{leaf}", tree[leaf]


def _checked(variables: PyTree, axes: Axes) -> Axes:
    """The axes, once each array has its own and their sizes agree."""
    channel_counts(variables, axes)
    return axes
