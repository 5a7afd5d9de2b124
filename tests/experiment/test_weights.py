"""Students made of their teachers' weights in experiments: where they start, and kinds that do not fit."""

import jax
import numpy as np
import pytest
from helpers import assert_trees_equal

from jaxkd import models
from jaxkd.experiment.fields import weights
from jaxkd.types import Variables

BATCH = {"image": np.random.default_rng(0).standard_normal((4, 2, 2, 1)).astype(np.float32)}
CONFIG = weights.WeightsConfig(teacher="mlp", student="mlp_32", shallow=None)


@pytest.fixture(scope="module")
def sides():
    """The teacher's network, variables of it and of a student."""
    made = [weights.MEMBERS[name].make(3) for name in ("mlp", "mlp_32")]
    return made[0], *(models.init(model, jax.random.key(0), BATCH) for model in made)


@pytest.mark.parametrize("kind", ["even", "first", "random", "norms", "activations"])
def test_narrow_students_have_channels_of_the_teacher(sides, kind):
    model, trained, own = sides
    found = weights.Starts(CONFIG, model, trained, BATCH).narrow(own, kind)
    rows = {tuple(row) for row in np.asarray(trained.params["head"]["kernel"])}
    assert len({tuple(row) for row in np.asarray(found.params["head"]["kernel"])} & rows) == 32


def stages(**blocks):
    """Variables of blocks, each with its number; first ones of later stages have a shortcut."""
    return Variables(
        {
            f"{stage}_block{b}" if stage != "vit" else f"block{b - 1}": {
                "conv1": np.float32([b]),
                **({"shortcut_conv": np.float32([b])} if b == 1 and stage == "stage2" else {}),
            }
            for stage, count in blocks.items()
            for b in range(1, count + 1)
        },
        {},
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("first", [1, 2, 1, 2]), ("last", [3, 4, 1, 4]), ("even", [2, 4, 1, 4]), ("fused", [1.5, 3.5, 1, 3])],
)
def test_shallow_students_have_blocks_of_the_teacher(kind, expected):
    starts = weights.Starts(CONFIG, None, stages(stage1=4, stage2=4), BATCH)
    found = starts.shallow(stages(stage1=2, stage2=2), kind).params
    assert [float(found[name]["conv1"][0]) for name in sorted(found)] == expected
    starts = weights.Starts(CONFIG, None, stages(vit=4), BATCH)
    found = starts.shallow(stages(vit=2), kind).params
    assert [float(found[name]["conv1"][0]) for name in ("block0", "block1")] == expected[:2]
    with pytest.raises(ValueError, match=r"--shallow None has the stages \['stage1'\], but --teacher mlp \[''\]"):
        starts.shallow(stages(stage1=1), kind)
    with pytest.raises(ValueError, match="4 blocks cannot become 5: give --shallow no more blocks than the teacher"):
        starts.shallow(stages(vit=5), kind)


@pytest.mark.parametrize("matched", [None, "weights", "activations"])
def test_equal_members_merge_to_themselves(sides, matched):
    model, trained, _ = sides
    assert_trees_equal(weights.merge("mlp", model, [trained, trained], BATCH, matched), trained)


def test_kinds_that_are_made_of_others_name_them():
    weights.check_kinds(weights.USUAL, "vit_64_2")
    for kinds, shallow, said in (
        (("soups",), None, "--kinds has soups, which is made of the students even-kd: name these, too"),
        (("merged",), None, "--kinds has merged, which is made of the students narrow"),
        (("narrow", "continued-matched"), None, "which is made of the students merged-matched: name these, too"),
        (("shallow-kd",), None, "--kinds has shallow-kd, but there is no --shallow network"),
    ):
        with pytest.raises(ValueError, match=said):
            weights.check_kinds(kinds, shallow)


def test_networks_know_their_channels():
    batch = {"image": np.zeros((1, 28, 28, 3), np.float32)}
    for name, channels in (("vit_64_2", "block1/mlp"), ("resnet8", "stage3_block1/conv1")):
        shapes = jax.eval_shape(weights.MEMBERS[name].make(5).init, jax.random.key(0), batch)
        assert any(channels in names for names in weights.MEMBERS[name].axes_of(shapes).names.values())


def test_networks_that_do_not_fit_are_refused_before_any_training(sides):
    teacher, _, _ = sides
    small, vit = weights.MEMBERS["mlp_32"].make(3), weights.MEMBERS["vit_64_2"].make(3)
    weights.check_networks(CONFIG, teacher, small, None, BATCH)
    swapped = weights.WeightsConfig(teacher="mlp_32", student="mlp")
    with pytest.raises(
        ValueError, match=r"--student mlp cannot start from --teacher mlp_32: params/dense1/bias has sh"
    ):
        weights.check_networks(swapped, small, teacher, None, BATCH)
    images = {"image": np.zeros((1, 28, 28, 1), np.float32)}
    with pytest.raises(ValueError, match=r"--shallow vit_64_2 has the stages \[''\], but --teacher mlp \[\]"):
        weights.check_networks(weights.WeightsConfig(teacher="mlp", student="mlp_32"), teacher, small, vit, images)
    wide = weights.WeightsConfig(teacher="vit_32", student="vit_32")
    narrow = weights.MEMBERS["vit_32"].make(3)
    with pytest.raises(
        ValueError, match=r"--shallow vit_64_2 cannot start from --teacher vit_32: \S+ has shape \(64,\)"
    ):
        weights.check_networks(wide, narrow, narrow, vit, images)
