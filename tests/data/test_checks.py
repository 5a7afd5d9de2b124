"""The split grammar."""

import pytest

from jaxkd.data import checks

SIZES = {"train": 101, "test": 10, "empty": 0}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", ("train", 0, 101)),
        ("train[:]", ("train", 0, 101)),
        ("train[10:20]", ("train", 10, 20)),
        ("train[-1:]", ("train", 100, 101)),
        ("train[:-10%]", ("train", 0, 91)),
        ("test[5:1000]", ("test", 5, 10)),
    ],
)
def test_split_is_a_python_slice(split, expected):
    assert checks.split_rows("set", split, SIZES) == expected


@pytest.mark.parametrize("percent", [1, 33, 50, 90, 99])
def test_percentages_partition_the_split(percent):
    _, start, middle = checks.split_rows("set", f"train[:{percent}%]", SIZES)
    _, again, stop = checks.split_rows("set", f"train[{percent}%:]", SIZES)
    assert (start, stop) == (0, 101)
    assert middle == again
    assert abs(middle - 101 * percent / 100) <= 0.5


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", "set has no split 'trian': it has train, test and empty"),
        ("train+test", "is not understood"),
        ("train[5]", "is not understood: write NAME or NAME\\[start:stop\\]"),
        ("train[a:b]", "is not understood"),
        ("", "is not understood"),
        ("train[5:5]", "split 'train\\[5:5\\]' of set is empty: train has 101 rows"),
        ("empty", "is empty: empty has 0 rows"),
        ("train[:110%]", "between 0% and 100%"),
    ],
)
def test_bad_splits_get_a_sentence(split, message):
    with pytest.raises(ValueError, match=message):
        checks.split_rows("set", split, SIZES)
