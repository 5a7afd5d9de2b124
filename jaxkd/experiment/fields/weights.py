"""Students made of their teachers' weights: networks in families, and the variables that students start from."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax

from jaxkd import models, objectives
from jaxkd.experiment.comparison import SMOKE, ComparisonConfig
from jaxkd.experiment.domains import COUNT
from jaxkd.experiment.flags import NETWORKS, TRAINING, flag
from jaxkd.experiment.networks import SMALL_IMAGES
from jaxkd.models.axes import Axes, leaves_of
from jaxkd.pytorch import Published
from jaxkd.types import Batch, Model, Variables

VIT = functools.partial(models.vision_transformer, patch=14, dropout=0.1)
"""Vision transformers for images of 28 pixels, thus of four patches."""


class Member(NamedTuple):
    """A network of a family.

    Attributes:
      make: (num_classes) -> model.
      axes_of: Variables -> axes.
    """

    make: Callable[..., Model]
    axes_of: Callable[[Variables], Axes]


_HEADS = {heads: functools.partial(models.transformer_axes, heads=heads) for heads in (2, 4)}
MEMBERS: Mapping[str, Member] = {
    "vit_64": Member(functools.partial(VIT, layers=4, width=64, heads=4), _HEADS[4]),
    "vit_64_2": Member(functools.partial(VIT, layers=2, width=64, heads=4), _HEADS[4]),
    "vit_32": Member(functools.partial(VIT, layers=4, width=32, heads=2), _HEADS[2]),
    "resnet14x2": Member(functools.partial(models.resnet, depth=14, widen=2, stem=32), models.resnet_axes),
    "resnet8x2": Member(functools.partial(models.resnet, depth=8, widen=2, stem=32), models.resnet_axes),
    "resnet14": Member(functools.partial(models.resnet, depth=14), models.resnet_axes),
    "resnet8": Member(functools.partial(models.resnet, depth=8), models.resnet_axes),
    "convnet": Member(SMALL_IMAGES["convnet"].make, models.plain_axes),
    "convnet_8_16": Member(SMALL_IMAGES["convnet_8_16"].make, models.plain_axes),
    "mlp": Member(SMALL_IMAGES["mlp"].make, models.plain_axes),
    "mlp_32": Member(functools.partial(models.mlp, hidden=(32,)), models.plain_axes),
}
"""Name -> network whose channels are known. Names tell the width, then the number of blocks where it is not 4."""

NARROW = ("narrow", "narrow-kd", "even", "even-kd", "first-kd", "random-kd", "norms-kd", "activations-kd")
"""Kinds of students with the network of `--student`; those called narrow begin anew."""
SHALLOW = ("shallow-kd", "first-blocks-kd", "last-blocks-kd", "even-blocks-kd", "fused-blocks-kd")
"""Kinds of students with the network of `--shallow`; the one called shallow begins anew."""
MATCHED = {"merged": None, "merged-matched": "weights", "merged-activations": "activations"}
"""Kind of merged networks -> what their channels are matched by."""
MERGED = (*MATCHED, "continued", "continued-matched", "soups")
"""Kinds that are made of the students called narrow and, for soups, of those called even-kd."""
KINDS = NARROW + SHALLOW + MERGED
USUAL = tuple(kind for kind in KINDS if kind not in ("random-kd", "norms-kd", "first-blocks-kd", "last-blocks-kd"))
"""Kinds that are trained by default."""


def check_kinds(kinds: Sequence[str], shallow: str | None) -> None:
    """Refuses kinds of students that are made of others that are left out.

    Args:
      kinds: Names of kinds.
      shallow: Value of `--shallow`.

    Raises:
      ValueError: If one is.
    """
    for kind in kinds:
        made_of = {**dict.fromkeys(MERGED, "narrow"), "continued-matched": "merged-matched", "soups": "even-kd"}
        needed = made_of.get(kind, kind)
        if needed not in kinds:
            raise ValueError(f"--kinds has {kind}, which is made of the students {needed}: name these, too.")
        if kind in SHALLOW and shallow is None:
            raise ValueError(f"--kinds has {kind}, but there is no --shallow network: name one, or leave {kind} out.")


@dataclasses.dataclass(frozen=True)
class WeightsConfig(ComparisonConfig):
    """Configuration of an experiment on students made of their teachers' weights."""

    name: str = "weights"
    source: str = "npz:mnist_{split}.npz"
    classes: int | None = None
    image_size: int | None = None
    train_split: str = "train[:5%]"
    validation_split: str = "train[95%:]"
    test_split: str = "test[:50%]"
    flip: bool = False
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    teacher: str = "vit_64"
    student: str = flag("vit_32", "students' network, of the teacher's family and no larger", NETWORKS)
    shallow: str | None = flag("vit_64_2", "network as wide as the teacher's, with fewer blocks", NETWORKS)
    fresh_head: bool = flag(
        False,
        "begin last layers anew for each seed, as for other classes; without dropout seeds differ in that alone",
        NETWORKS,
    )
    calibration: int = flag(256, "training images on which activations are measured", TRAINING, COUNT)
    teacher_epochs: int = 20
    epochs: int = 6
    batch_size: int = 64

    networks: ClassVar[Mapping[str, Published]] = {name: Published(x.make, ()) for name, x in MEMBERS.items()}


SMALL: Mapping[str, Any] = {
    **SMOKE,
    "name": "weights-smoke",
    "train_split": "train[:90%]",
    "validation_split": "train[90%:]",
    "test_split": "test",
    "teacher": "mlp",
    "student": "mlp_32",
    "shallow": None,
    "kinds": ("even-kd", "soups"),
}
"""Configuration of a smoke run."""


class Starts(NamedTuple):
    """First variables of students, made of one trained teacher.

    Attributes:
      config: The configuration.
      model: The teacher's network.
      trained: The teacher's variables.
      batch: Prepared images for calibration.
    """

    config: WeightsConfig
    model: Model
    trained: Variables
    batch: Batch

    def narrow(self, own: Variables, kind: str) -> Variables:
        """Selects channels of all layers.

        Args:
          own: The student's own first variables.
          kind: One of `NARROW` without its ending: how they are chosen.

        Returns:
          The student's variables.
        """
        axes, own_axes = (MEMBERS[name].axes_of(x) for name, x in self._pair(own))
        scored = functools.partial(models.by_importance, axes=axes, own_axes=own_axes)
        choose: Mapping[str, Callable[[], models.selection.Choose]] = {
            "even": lambda: models.evenly,
            "first": lambda: models.first,
            "random": lambda: models.at_random(jax.random.key(self.config.seed)),
            "norms": lambda: scored(models.weight_norms(self.trained, axes)),
            "activations": lambda: scored(models.mean_activations(self.model, self.trained, axes, [self.batch])),
        }
        return models.select(own, self.trained, axes, choose[kind]())

    def shallow(self, own: Variables, kind: str) -> Variables:
        """Takes or fuses blocks.

        Args:
          own: The student's own first variables.
          kind: `first`, `last`, `even` or `fused`.

        Returns:
          The student's variables.
        """
        groups = {}
        deep, few = blocks_of(self.trained), blocks_of(own)
        if deep.keys() != few.keys():
            raise ValueError(
                f"--shallow {self.config.shallow} has the stages {sorted(few)}, but --teacher {self.config.teacher} "
                f"{sorted(deep)}: give networks of one family."
            )
        for stage, numbers in deep.items():
            first = (
                numbers[:1] if stage and "shortcut_conv" in self.trained.params[f"{stage}_block{numbers[0]}"] else []
            )
            groups[stage] = [(number,) for number in first] + _groups(
                numbers[len(first) :], len(few[stage]) - len(first), kind
            )
        return models.fuse_blocks(self.trained, groups)

    def _pair(self, own: Variables) -> tuple[tuple[str, Variables], tuple[str, Variables]]:
        return (self.config.teacher, self.trained), (self.config.student, own)


def check_networks(
    config: WeightsConfig, teacher: Model, student: Model, shallow: Model | None, example: Batch
) -> None:
    """Refuses students that cannot start from the teacher's weights, by trying it on shapes.

    Args:
      config: The configuration.
      teacher: The teacher.
      student: The narrow student.
      shallow: The shallow one, if there is any.
      example: Prepared images.

    Raises:
      ValueError: If one cannot.
    """
    trained, own = (jax.eval_shape(model.init, jax.random.key(0), example) for model in (teacher, student))
    axes = MEMBERS[config.teacher].axes_of(trained)
    try:
        jax.eval_shape(lambda own, trained: models.select(own, trained, axes), own, trained)
    except ValueError as error:
        raise ValueError(f"--student {config.student} cannot start from --teacher {config.teacher}: {error}") from error
    if shallow is None:
        return
    own = jax.eval_shape(shallow.init, jax.random.key(0), example)
    known = leaves_of(Starts(config, teacher, trained, example).shallow(own, "first"))
    for path, leaf in leaves_of(own).items():
        shape = known[path].shape if path in known else None
        if shape != leaf.shape:
            found = "has no such array" if shape is None else f"gives {shape}"
            raise ValueError(
                f"--shallow {config.shallow} cannot start from --teacher {config.teacher}: {path} has shape "
                f"{leaf.shape}, but the teacher {found}: give a network of its family and width."
            )


def blocks_of(variables: Variables) -> dict[str, list[int]]:
    """Numbers of a network's blocks.

    Args:
      variables: Its variables.

    Returns:
      Name of the stage, "" where there are none -> numbers, ascending.
    """
    found: dict[str, list[int]] = {}
    for name in variables.params:
        if match := re.fullmatch(r"(?:(.+)_)?block(\d+)", name):
            found.setdefault(match[1] or "", []).append(int(match[2]))
    return {stage: sorted(numbers) for stage, numbers in found.items()}


def _groups(numbers: list[int], count: int, kind: str) -> list[tuple[int, ...]]:
    """Groups of some of a stage's blocks."""
    if not 0 <= count <= len(numbers):
        raise ValueError(
            f"{len(numbers)} blocks cannot become {count}: give --shallow no more blocks than the teacher."
        )
    if not count:
        return []
    if kind == "fused":
        return [tuple(numbers[i] for i in group) for group in models.neighbours(len(numbers), count)]
    places = {
        "first": range(count),
        "last": objectives.last_layers(count, len(numbers)),
        "even": objectives.uniform_layers(count, len(numbers)),
    }
    return [(numbers[i],) for i in places[kind]]


def merge(name: str, model: Model, members: Sequence[Variables], batch: Batch, matched: str | None) -> Variables:
    """Averages networks of one form that began anew, once their channels are in the order of the first one's.

    Args:
      name: The network's name.
      model: The network.
      members: Variables of each.
      batch: Prepared images, on which running statistics are measured anew.
      matched: `weights` or `activations`, by which channels are matched; None leaves them as they are.

    Returns:
      Variables of one network.
    """
    first, *others = members
    axes = MEMBERS[name].axes_of(first)
    for i, other in enumerate(others):
        if matched == "weights":
            orders = models.match_weights(first, other, axes)
        elif matched == "activations":
            orders = models.match_activations(model, first, other, axes, [batch])
        else:
            continue
        others[i] = models.take_channels(other, axes, orders)
    return models.reestimate_statistics(model, models.average([first, *others]), [batch])
