"""Masks of a black box: pictures whose labels are what another network, of which only a file is known, sees in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import cache, data
from jaxkd.cache.network_files import from_litert, from_onnx
from jaxkd.experiment.fields.segmentation import SegmentationConfig
from jaxkd.runs.directory import Run

SLICES: Mapping[str, str] = {"train": "train[:85%]", "val": "train[85%:]", "test": "test"}
"""Split -> the slice of the pictures' data set that it is."""

_NETWORKS = {"litert": from_litert, "onnx": from_onnx}


def open_seen(config: SegmentationConfig, run: Run) -> dict[str, data.Source]:
    """Opens pictures, asks the black box for the masks of each once, and keeps both in memory.

    The answers are kept in the run's folder. They are no true masks: what agrees with them agrees with the black box.

    Args:
      config: The configuration.
      run: The run.

    Returns:
      Split -> source of `image`, `label` int32 [B, H, W], the likeliest class of each pixel, and `teacher_logits`
      float32 [B, H, W, K].

    Raises:
      ValueError: If the pictures or the network cannot be opened, or it gives no probabilities of pixels.
    """
    kind, _, place = (config.black_box or "").partition(":")
    if kind not in _NETWORKS or not place:
        raise ValueError(f"--black-box is {config.black_box!r}: write {' or '.join(f'{k}:PATH' for k in _NETWORKS)}.")
    foreign = _NETWORKS[kind](place, None, None, False)
    shape, found = config.image_size, {}
    run.settle()
    for split, part in SLICES.items():
        opened = data.open_source(config.pictures, part, data_dir=config.data_dir, image_size=shape)
        image = opened.read(np.arange(opened.size)).get("image")
        if image is None:
            raise ValueError(f"{opened.name} has no images: give pictures for --pictures.")
        alone = data.open_source({"image": image}, "train")
        ask = _asking(foreign.name, foreign.answer, config.black_box_size, shape)
        version = f"{foreign.fingerprint} at {config.black_box_size}, resized to {shape}"
        folder = run.path / "black_box" / split
        given = cache.black_box(alone, ask, folder, gives="probabilities", version=version, batch_size=32)
        logits = given.read(np.arange(given.size))["teacher_logits"]
        names = tuple(config.class_names) or ("background", *(str(k) for k in range(1, logits.shape[-1])))
        if len(names) != logits.shape[-1]:
            raise ValueError(
                f"--class-names has {len(names)} names but {foreign.name} has {logits.shape[-1]} classes: name each."
            )
        source = data.from_masks(f"{config.pictures}[{part}]", image, np.argmax(logits, axis=-1), names)
        found[split] = data.with_fields(source, teacher_logits=logits)
    return found


def _asking(
    name: str, answer: Callable[[Mapping[str, np.ndarray]], np.ndarray], size: int, shape: tuple[int, int]
) -> Callable[[Any], np.ndarray]:
    """A function from a batch to the black box's probabilities of pixels, [B, H, W, K], of the pictures' own size."""

    @jax.jit
    def larger(image: jax.Array) -> jax.Array:
        scaled = image.astype(jnp.float32) / (255 if image.dtype == jnp.uint8 else 1)
        coloured = jnp.broadcast_to(scaled, (*image.shape[:3], 3)) if image.shape[-1] == 1 else scaled
        return jax.image.resize(coloured, (len(image), size, size, 3), "bilinear")

    @jax.jit
    def smaller(p: jax.Array) -> jax.Array:
        return jax.image.resize(p, (len(p), *shape, p.shape[-1]), "bilinear")

    def ask(batch: Any) -> np.ndarray:
        p = np.asarray(answer({"image": np.asarray(larger(batch["image"]))}), np.float32)
        if p.ndim != 4:
            raise ValueError(
                f"{name} gave shape {p.shape}: give a network whose output is probabilities of pixels, [B, h, w, 1] of "
                "the foreground or [B, h, w, K] of classes."
            )
        p = np.concatenate([1 - p, p], axis=-1) if p.shape[-1] == 1 else p
        return np.asarray(smaller(p))

    return ask
