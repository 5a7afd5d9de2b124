"""What a finished run keeps of the networks that it has trained, and how they are used again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import data, parallel
from jaxkd.experiment.context import Context
from jaxkd.experiment.networks import LARGE_IMAGES, make_network
from jaxkd.files import read_json
from jaxkd.parallel import processes
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.runs.trained import fill, read_trained, write_trained
from jaxkd.types import Batch, Model, Prepare, TrainState, Variables

FORMAT = 1
"""Version of `network.json`."""


class Network(NamedTuple):
    """A trained network, ready for use.

    Attributes:
      model: The model; None if the run does not name it and it was not given.
      variables: Its variables, stacked [S, ...] if S students were trained together.
      prepare: Batch of images as they were read -> batch as the network was evaluated on; None if it is not known.
      about: Contents of `network.json`: task, classes, image shape, normalisation, step, ...
    """

    model: Model | None
    variables: Variables
    prepare: Prepare | None
    about: dict[str, Any]


def load_network(
    run: str | os.PathLike[str], phase: str, *, which: str = "final", model: Model | None = None
) -> Network:
    """Loads a network from the folder of a run, at any time after its phase has ended.

    Args:
      run: The run's folder.
      phase: Name of the phase that trained it, such as "teacher" or "distilled".
      which: "final", "best" (on the validation split, where that is another) or "ema" (the moving average).
      model: The model, if it is none of the networks that experiments name (`about["network"]` is then null).

    Returns:
      The network. `model.apply(variables, prepare(batch), None, False)` gives its outputs.

    Raises:
      ValueError: If the run has no such network or weights, if a file is damaged, or if the model is another.
      OSError: If a file cannot be read.
    """
    found = read_trained(Path(run) / "networks" / phase, which)
    about, variables = found.about, found.variables
    if model is None and about["network"] in LARGE_IMAGES:
        model = make_network(about["network"], about["num_classes"], LARGE_IMAGES)
    if model is not None:
        like = _abstract(model, about["image_shape"]) if about["image_shape"] else variables
        if about["students"]:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((about["students"], *x.shape), x.dtype), like)
        variables = fill(like, variables)
    statistics = about["normalisation"]
    return Network(model, variables, _prepare(**statistics) if statistics else None, about)


def _prepare(mean: ArrayLike, std: ArrayLike) -> Prepare:
    """Preparation of a batch that was read: images in [0, 1], normalised."""

    mean, std = (np.asarray(values, np.float32).reshape(1, 1, 1, -1) for values in (mean, std))

    def prepare(batch: Batch) -> Batch:
        image = jnp.asarray(batch["image"])
        scale = 255.0 if image.dtype == jnp.uint8 else 1.0
        return {**batch, "image": (image / scale - mean) / std}

    return prepare


def keep_network(
    context: Context, phase: str, source: data.Source, batch: Batch, state: TrainState, checkpoints: Checkpoints
) -> None:
    """Keeps the student of a phase that has ended in the run's folder, for `load_network`; on process 0 alone.

    Args:
      context: The context of the experiment's trainings.
      phase: The phase.
      source: Its training data.
      batch: A batch of them, on the host.
      state: The state after the last step.
      checkpoints: The phase's checkpoints, of which the best one is kept too.

    Raises:
      OSError: If the run's folder cannot be written to.
    """
    step, best = int(np.max(jax.device_get(state.step))), checkpoints.best()
    states = {"final": state}
    if best is not None and best != step and (restored := checkpoints.restore_best(state)) is not None:
        states["best"] = restored
    weights = {which: Variables(one.params["student"], one.state["student"]) for which, one in states.items()}
    if state.ema is not None:
        weights["ema"] = state.ema
    weights = {which: parallel.fetch(variables) for which, variables in weights.items()}
    if not processes.is_first():
        return
    count = state.step.shape[0] if state.step.ndim else None
    about = {
        "format": FORMAT,
        "phase": phase,
        "step": step,
        "best_step": best,
        "students": count,
        "task": source.task,
        "num_classes": source.num_classes,
        "class_names": list(source.class_names) or None,
        "image_shape": source.image_shape,
        "normalisation": _normalisation(context.eval_prepare, batch),
        "network": _name(context.run.path, phase, source, weights["final"], stacked=count is not None),
    }
    write_trained(context.run.path / "networks" / phase, weights, about)


def _normalisation(prepare: Prepare, batch: Batch) -> dict[str, Any] | None:
    """Mean and std of each channel, from what becomes of a black and of a white image; None if that is not all."""
    image = batch.get("image")
    if image is None or image.ndim != 4:
        return None
    shape = image.shape[1:]
    noise = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    images = np.stack([np.zeros(shape, np.float32), np.ones(shape, np.float32), noise])
    if image.dtype == np.uint8:
        images = np.round(255 * images).astype(np.uint8)
    rows = {name: np.repeat(np.asarray(values)[:1], 3, axis=0) for name, values in batch.items() if name != "image"}
    black, white, found = np.asarray(prepare({**rows, "image": images})["image"], np.float64)
    if black.shape != shape or not (np.ptp(black, (0, 1)) == 0).all() or not (np.ptp(white, (0, 1)) == 0).all():
        return None
    std = 1 / np.maximum(white[0, 0] - black[0, 0], 1e-12)
    mean = -black[0, 0] * std
    plain = images[2] / (255.0 if image.dtype == np.uint8 else 1.0)
    if not np.allclose((plain - mean) / std, found, rtol=1e-3, atol=1e-3):
        return None
    return {"mean": mean.tolist(), "std": std.tolist()}


def _name(run: Path, phase: str, source: data.Source, variables: Variables, *, stacked: bool) -> str | None:
    """Name of the network among those that the run's configuration names: the one that has these variables."""
    config: Mapping[str, Any] = read_json(run / "config.json")
    sides = ("teacher", "student") if phase.startswith("teacher") else ("student", "teacher")
    shapes = jax.tree.map(lambda x: x.shape[1:] if stacked else x.shape, variables)
    for name in dict.fromkeys(config.get(side) for side in sides):
        if isinstance(name, str) and name in LARGE_IMAGES and source.image_shape is not None and source.num_classes:
            like = _abstract(LARGE_IMAGES[name].make(source.num_classes), source.image_shape)
            if jax.tree.map(lambda x: x.shape, like) == shapes:
                return name
    return None


def _abstract(model: Model, image_shape: Any) -> Variables:
    """Shapes and dtypes of a model's variables."""
    batch = {"image": jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)}
    return jax.eval_shape(model.init, jax.random.key(0), batch)
