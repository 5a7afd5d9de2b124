"""Anchor-free detectors: a residual backbone, a neck of several strides, and one head for all of them.

Features: `stage1..` (strides 4, 8, 16, as far as they are needed); `neck0..`, one map for each stride of the detector,
the finest first; at the locations of all strides together `distances`, `found_boxes`, `bins` and `centerness`; and
`class_tower0..`, `box_tower0..`, what the head's first convolutions give for each map, which `apply_head` takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.boxes import around
from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Conv, conv_norms
from jaxkd.models.misfits import check_sizes
from jaxkd.models.vision.resnet import Block
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, leaf_name

STRIDES = (4, 8, 16)
"""Strides of the stages of the backbone, in pixels."""

_PRIOR = 0.01  # probability of a class at a location before training, as in RetinaNet


class Predictions(NamedTuple):
    """Predictions of a head on one map.

    Attributes:
      logits: [B, H, W, K], one sigmoid for each class.
      bins: [B, H, W, 4, J], logits over the distances of the left, upper, right and lower edge.
      centerness: [B, H, W], logits.
    """

    logits: jax.Array
    bins: jax.Array
    centerness: jax.Array


class Head(nn.Module):
    """Head of a detector: two towers of 3x3 convolutions, for classes and for boxes, with group norm.

    Attributes:
      num_classes: K.
      width: Channels of the towers.
      depth: Convolutions of each tower.
      bins: J, distances of an edge.
    """

    num_classes: int
    width: int
    depth: int
    bins: int

    @nn.compact
    def __call__(self, x: jax.Array, start: int = 0, y: jax.Array | None = None) -> tuple[Predictions, Any, Any]:
        """Predictions for a map, and what the first convolutions give before their ReLU.

        Args:
          x: [B, H, W, C]; with `start` what the convolution before gave for classes.
          start: Convolutions of each tower to leave out.
          y: With `start` what the convolution before gave for boxes.

        Returns:
          Predictions, and the two towers' maps [B, H, W, width] after their first convolution; None with `start`.
        """
        first: dict[str, Any] = {"class": None, "box": None}
        towers = {"class": x, "box": x if y is None else y}
        for side, z in towers.items():
            z = nn.relu(z) if start else z
            for i in range(start, self.depth):
                z = Conv(self.width, (3, 3), name=f"{side}_conv{i}", use_bias=False)(z)
                z = nn.GroupNorm(None, group_size=min(4, self.width), name=f"{side}_norm{i}")(z)
                first[side] = z if i == 0 else first[side]
                z = nn.relu(z)
            towers[side] = z
        logits = Conv(self.num_classes, (3, 3), name="class_out")(towers["class"])
        edges = Conv(4 * self.bins, (1, 1), name="box_out")(towers["box"])
        centre = Conv(1, (1, 1), name="centre_out")(towers["box"])
        edges = edges.reshape(*edges.shape[:-1], 4, self.bins)
        return Predictions(logits, edges, centre[..., 0]), first["class"], first["box"]


class Detector(nn.Module):
    """Backbone, neck and head.

    Attributes:
      num_classes: K.
      width: Channels of the first stage; each further stage has twice as many.
      neck: Channels of the neck and of the head.
      blocks: Residual blocks of each stage.
      depth: Convolutions of each tower of the head.
      strides: Strides at which objects are found, of `STRIDES`, increasing.
      bins: J, distances of an edge.
      axis_name: Axis over which batch norm takes its statistics together, or None.
    """

    num_classes: int
    width: int
    neck: int
    blocks: int
    depth: int
    strides: Sequence[int]
    bins: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, P, K]."""
        height, width = image.shape[1:3]
        if height % STRIDES[-1] or width % STRIDES[-1]:
            raise ValueError(
                f"a detector reads images whose sides are multiples of {STRIDES[-1]} but images are {height} x "
                f"{width}: resize them (--image-size)."
            )
        x, features = _halved(image), {}
        x = nn.relu(conv_norms(train, self.axis_name)(x, self.width, "stem_{}", stride=2))
        for stage in range(1 + STRIDES.index(self.strides[-1])):
            for i in range(self.blocks):
                stride, name = 2 if stage and i == 0 else 1, f"stage{stage + 1}_block{i + 1}"
                x = nn.relu(Block(self.width * 2**stage, stride, axis_name=self.axis_name, name=name)(x, train))
            features[f"stage{stage + 1}"] = x
        used = [features[f"stage{STRIDES.index(s) + 1}"] for s in self.strides]
        maps: list[jax.Array] = []
        for level in reversed(range(len(used))):
            z = Conv(self.neck, (1, 1), name=f"lateral{level}")(used[level])
            if maps:
                z = z + _raised(maps[0], z.shape[1] // maps[0].shape[1])
            maps.insert(0, z)
        maps = [Conv(self.neck, (3, 3), name=f"neck{level}")(z) for level, z in enumerate(maps)]
        features |= {f"neck{level}": z for level, z in enumerate(maps)}
        head = Head(self.num_classes, self.neck, self.depth, self.bins, name="head")
        found = []
        for level, z in enumerate(maps):
            predictions, classes, boxes = head(z)
            features |= {f"class_tower{level}": classes, f"box_tower{level}": boxes}
            found.append(predictions)
        logits, more = joined(found, self.strides)
        return Outputs(logits, {**features, **more})


def _halved(image: jax.Array) -> jax.Array:
    """Images [B, H, W, C] as [B, H/2, W/2, 4 C]: the pixels of each square of 2 x 2 side by side, exact and cheap."""
    B, H, W, C = image.shape
    squares = image.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(B, H // 2, W // 2, 4 * C)


def _raised(x: jax.Array, factor: int) -> jax.Array:
    """Maps [B, H, W, C] of `factor` times the height and width, each cell repeated; its gradient is a sum."""
    B, H, W, C = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (B, H, factor, W, factor, C)).reshape(B, H * factor, W * factor, C)


def joined(found: Sequence[Predictions], strides: Sequence[int]) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Predictions on the maps of all strides as arrays over all locations.

    An edge's distance is the mean of its distribution over -1, 0, .., J - 2 strides. One stride below 0 lets boxes
    that are smaller than a cell lie beside their location.

    Args:
      found: Predictions on the map of each stride.
      strides: The strides, in pixels.

    Returns:
      Logits [B, P, K], and features: `bins` [B, P, 4, J], `distances` [B, P, 4] in pixels from a location to the left,
      upper, right and lower edge, `found_boxes` [B, P, 4], (x1, y1, x2, y2) in pixels, and `centerness` [B, P].
    """
    flat = [jax.tree.map(lambda x: x.reshape(len(x), -1, *x.shape[3:]), one) for one in found]
    logits, bins, centre = (jnp.concatenate(parts, axis=1) for parts in zip(*flat, strict=True))
    shapes = [one.centerness.shape[1:] for one in found]
    points, scale = locations(shapes, strides)
    values = jnp.arange(bins.shape[-1], dtype=bins.dtype) - 1
    mean = jnp.sum(jax.nn.softmax(bins, axis=-1) * values[None, None, None], axis=-1)
    distances = mean * jnp.asarray(scale, mean.dtype)[None, :, None]
    features = {"bins": bins, "centerness": centre, "distances": distances}
    return logits, features | {"found_boxes": around(jnp.asarray(points, mean.dtype)[None], distances)}


def locations(shapes: Sequence[tuple[int, ...]], strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the cells of several maps, row after row, and the stride of each.

    Args:
      shapes: (height, width) of each map.
      strides: Stride of each map, in pixels.

    Returns:
      (x, y) in pixels, float32 [P, 2], and strides, float32 [P].
    """
    points, scale = [], []
    for (height, width), stride in zip(shapes, strides, strict=True):
        y, x = np.mgrid[:height, :width]
        points.append((np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) * stride)
        scale.append(np.full(height * width, stride))
    return np.concatenate(points).astype(np.float32), np.concatenate(scale).astype(np.float32)


def detector(
    num_classes: int,
    *,
    width: int = 32,
    neck: int | None = None,
    blocks: int = 2,
    depth: int = 2,
    strides: Sequence[int] = STRIDES,
    bins: int = 8,
    axis_name: str | None = None,
) -> Model:
    """Anchor-free detector like FCOS, with box edges as distributions like GFL's.

    A ResNet of three stages of strides 4, 8 and 16 (two blocks each, as ResNet-18), a feature pyramid and a head that
    all strides share. Each location of a map predicts classes, a box around it, and how central it is in that box.

    Args:
      num_classes: K.
      width: Channels of the first stage; the others have 2 and 4 times as many.
      neck: Channels of neck and head; width if None.
      blocks: Residual blocks of each stage.
      depth: 3x3 convolutions of each tower of the head.
      strides: Strides at which objects are found: some of 4, 8 and 16, increasing.
      bins: J, distances of an edge that its distribution is over: -1, 0, .., J - 2 strides. A box whose edge is farther
        from its location cannot be found whole.
      axis_name: As for other models with batch norm.

    Returns:
      A model that reads `image` [B, H, W, C], whose sides are multiples of 16, and returns logits [B, P, K] over all
      locations, with the features that the module names.

    Raises:
      ValueError: If a size is not positive, or the strides are others.

    Reference:
      Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019,
      https://arxiv.org/abs/1904.01355;
      Li et al., "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection",
      NeurIPS 2020, https://arxiv.org/abs/2006.04388
    """
    given = tuple(strides)
    if not given or list(given) != sorted(set(given) & set(STRIDES)):
        raise ValueError(f"strides are {given}: give some of {', '.join(map(str, STRIDES))}, each once, increasing.")
    neck = width if neck is None else neck
    check_sizes(num_classes=num_classes, width=width, neck=neck, blocks=blocks, depth=depth)
    if bins < 3 or neck % min(4, neck):
        raise ValueError(f"bins is {bins} and neck {neck}: give at least 3 bins, and channels that 4 divides.")
    model = from_linen(Detector(num_classes, width, neck, blocks, depth, given, bins, axis_name))

    def init(key: jax.Array, batch: Batch) -> Variables:
        shapes = jax.eval_shape(model.init, key, batch)
        return jax.jit(lambda key: _drawn(key, shapes))(key)

    return Model(init, model.apply)


def _drawn(key: jax.Array, shapes: Variables) -> Variables:
    """First variables: kernels of variance 1 / fan-in, those of predictions small, and a prior for classes.

    All kernels are parts of one draw, which compiles once; a draw of each shape would take seconds for each.
    """
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    draw, used = jax.random.truncated_normal(key, -2, 2, (total,)) / 0.87962566103423978, 0

    def first(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        nonlocal used
        layer, name = leaf_name(path).split("/")[-2:]
        if name == "kernel":
            part, used = draw[used : used + leaf.size].reshape(leaf.shape), used + leaf.size
            return part * (0.01 if layer.endswith("_out") else float(np.prod(leaf.shape[:-1])) ** -0.5)
        prior = np.log(_PRIOR / (1 - _PRIOR)) if layer == "class_out" else 0.0
        return jnp.full(leaf.shape, 1.0 if name in ("scale", "var") else prior, leaf.dtype)

    params, state = (jax.tree_util.tree_map_with_path(first, tree) for tree in shapes)
    return Variables(params, state)


def apply_head(
    params: PyTree, classes: Sequence[jax.Array], boxes: Sequence[jax.Array], strides: Sequence[int]
) -> Outputs:
    """Applies a head from its second convolutions on to what another network's first ones gave, as CrossKD does.

    Args:
      params: The head's parameters, `params["head"]` of a detector's variables.
      classes: What the first convolutions for classes gave, in the head's width: [B, H, W, C] for each stride.
      boxes: The same for boxes.
      strides: The strides.

    Returns:
      Logits and features at all locations, as a detector with this head has them.
    """
    width, K = params["class_out"]["kernel"].shape[-2:]
    depth = sum(name.startswith("class_conv") for name in params)
    head = Head(K, width, depth, params["box_out"]["kernel"].shape[-1] // 4)
    found: list[Predictions] = [head.apply({"params": params}, x, 1, y)[0] for x, y in zip(classes, boxes, strict=True)]
    return Outputs(*joined(found, strides))
