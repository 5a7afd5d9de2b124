"""Shallower networks: blocks that were taken, and means of neighbouring ones."""

import jax
import numpy as np
import pytest
from helpers import assert_trees_equal

from jaxkd import models
from jaxkd.types import Variables


def block(value, *more):
    return {"conv1": {"kernel": np.full(3, value, np.float32)}, **{name: {"kernel": np.zeros(2)} for name in more}}


DEEP = Variables({"encoder": {f"block{i}": block(float(i)) for i in range(4)}, "head": {"kernel": np.ones(2)}}, {})
BLOCKS = {
    f"stage{s}_block{b}": block(10.0 * s + b, *["shortcut_conv"] * (b == 1 < s)) for s in (1, 2) for b in (1, 2, 3)
}
STAGES = Variables({"stem": block(0.0), **BLOCKS}, {"batch_stats": {name: x["conv1"] for name, x in BLOCKS.items()}})


def values(tree):
    return {name: float(x["conv1"]["kernel"][0]) for name, x in tree.items() if "block" in name}


def test_means_of_neighbours_become_blocks():
    found = models.fuse_blocks(DEEP, ((0, 1), (2, 3))).params
    assert values(found["encoder"]) == {"block0": 0.5, "block1": 2.5}
    assert found["head"]["kernel"] is DEEP.params["head"]["kernel"]
    found = models.fuse_blocks(STAGES, {"stage1": ((1, 2, 3),), "stage2": ((1,), (2, 3))})
    assert values(found.params) == {"stage1_block1": 12, "stage2_block1": 21, "stage2_block2": 22.5}
    assert found.state["batch_stats"]["stage2_block2"]["kernel"][0] == 22.5


def test_equal_blocks_fuse_to_themselves_and_groups_of_one_are_the_blocks():
    value = np.random.default_rng(0).standard_normal(5).astype(np.float32)
    same = Variables({f"block{i}": {"mlp1": {"kernel": value}} for i in range(3)}, {})
    np.testing.assert_array_equal(models.fuse_blocks(same, ((0, 1, 2),)).params["block0"]["mlp1"]["kernel"], value)
    assert_trees_equal(models.fuse_blocks(DEEP, ((3,), (1,))), models.take_blocks(DEEP, (3, 1)))
    assert_trees_equal(models.fuse_blocks(DEEP, models.neighbours(4, 4)), DEEP)


def test_blocks_are_taken_within_stages():
    found = models.take_blocks(STAGES, {"stage1": (2,), "stage2": (1, 3)})
    assert values(found.params) == {"stage1_block1": 12, "stage2_block1": 21, "stage2_block2": 23}
    assert found.params["stage2_block2"]["conv1"]["kernel"] is STAGES.params["stage2_block3"]["conv1"]["kernel"]
    found = models.take_blocks(STAGES, {"stage1": (2,)}).params
    assert values(found) == {"stage1_block1": 12, **{f"stage2_block{b}": 20 + b for b in (1, 2, 3)}}


def test_a_shallower_resnet_has_the_structure_of_its_network():
    batch = {"image": np.zeros((1, 8, 8, 3), np.float32)}
    deep, small = (jax.eval_shape(models.resnet(5, depth=depth).init, jax.random.key(0), batch) for depth in (20, 14))
    taken = models.take_blocks(deep, {"stage1": (1, 3), "stage2": (1, 2), "stage3": (1, 3)})
    assert jax.tree.map(lambda x: x.shape, taken) == jax.tree.map(lambda x: x.shape, small)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (((0, 4),), r"groups=\[\[0, 4\]\] should be among 0..3, the network's blocks"),
        (((0, 0),), "should hold different numbers"),
        ((), "should hold different numbers"),
        (((0,), ()), "should hold different numbers"),
        ({"stage1": ((1,),)}, "'stage1' are asked for, but the network's stages are: none"),
    ],
    ids=["no such block", "twice", "none", "empty group", "stages of a transformer"],
)
def test_groups_that_do_not_fit_are_one_sentence(groups, said):
    with pytest.raises(ValueError, match=said):
        models.fuse_blocks(DEEP, groups)


def test_the_first_block_of_a_stage_stays_the_first():
    for groups in ({"stage2": ((2,), (1,))}, {"stage2": ((1, 2),)}):
        with pytest.raises(
            ValueError, match=r"stage2 begins with block .*, but its block 1 alone .*: begin with 1 alone"
        ):
            models.fuse_blocks(STAGES, groups)
    with pytest.raises(ValueError, match=r"blocks=\(4,\) should be among 1..3 of stage1"):
        models.take_blocks(STAGES, {"stage1": (4,)})
    with pytest.raises(ValueError, match="'stage9' are asked for, but the network's stages are: stage1, stage2"):
        models.take_blocks(STAGES, {"stage9": (1,)})
    with pytest.raises(ValueError, match="no stages are asked for, but the network's stages are: stage1, stage2"):
        models.take_blocks(STAGES, (1,))


def test_neighbours_are_consecutive_and_cover_all_blocks():
    assert models.neighbours(4, 2) == ((0, 1), (2, 3))
    assert models.neighbours(5, 2, begin=1) == ((1, 2), (3, 4, 5))
    with pytest.raises(ValueError, match=r"2 blocks cannot be put into 3 groups: choose 1..2"):
        models.neighbours(2, 3)
