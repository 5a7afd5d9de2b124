"""Rules between names: numbers on both sides, leaves, and the way back."""

import pytest

from jaxkd.pytorch import Rule
from jaxkd.pytorch.names import name_of, place

RULES = (
    Rule("head", "head"),
    Rule("layer{s}.{b}.conv{n}", "stage{s}_block{b+1}/conv{n}"),
    Rule("features.{3*i}", "conv{i+1}"),
    Rule("features.{3*i+1}", "norm{i+1}"),
    Rule("pair.{a}.{a}", "pair{a}"),
    Rule("attention.in_", ("query", "key", "value")),
    Rule("scale", "gamma", ones=2),
)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("head.weight", "head/kernel"),
        ("head.bias", "head/bias"),
        ("layer2.0.conv1.weight", "stage2_block1/conv1/kernel"),
        ("layer2.10.conv13.weight", "stage2_block11/conv13/kernel"),
        ("features.0.bias", "conv1/bias"),
        ("features.6.bias", "conv3/bias"),
        ("features.7.running_mean", "norm3/mean"),
        ("features.7.running_var", "norm3/var"),
        ("pair.4.4.bias", "pair4/bias"),
        ("scale", "gamma"),
    ],
)
def test_names_go_there_and_back(theirs, ours):
    assert (ours,) in [paths for paths, _ in place(RULES, theirs)]
    assert name_of(RULES, ours) == (theirs, 0, 2 if theirs == "scale" else 0)


def test_a_weight_may_be_of_a_layer_of_a_norm_or_of_an_embedding():
    ours = [("head/kernel",), ("head/scale",), ("head/embedding",)]
    assert [paths for paths, _ in place(RULES, "head.weight")] == ours
    assert name_of(RULES, "head/scale").theirs == "head.weight"


def test_one_tensor_may_hold_several_layers():
    assert place(RULES, "attention.in_bias") == ((("query/bias", "key/bias", "value/bias"), 0),)
    assert [name_of(RULES, f"{n}/bias")[:2] for n in ("query", "value")] == [("attention.in_bias", i) for i in (0, 2)]


@pytest.mark.parametrize(
    "name",
    [
        "heads.weight",
        "xhead.weight",
        "layer1.0.conv.weight",
        "features.2.weight",
        "featuresX1.weight",
        "pair.4.5.bias",
        "head.gain",
        "head",
        "layer1.-1.conv1.weight",
    ],
)
def test_other_names_have_no_place(name):
    assert not [paths for paths, _ in place(RULES, name) if paths != ("head",)]


@pytest.mark.parametrize("path", ["stage1_block0/conv1/kernel", "conv0/bias", "tail/kernel", "query/other", "gammas"])
def test_other_paths_have_no_name(path):
    assert name_of(RULES, path) is None


def test_the_first_rule_that_fits_holds():
    rules = (Rule("a.1", "first"), Rule("a.{i}", "other{i}"))
    assert [place(rules, f"a.{i}.bias")[0].paths for i in (1, 2)] == [("first/bias",), ("other2/bias",)]
