"""Series of sensors and their graph, from CSV files, and what is refused in a sentence."""

import lzma

import numpy as np
import pytest

from jaxkd.data.readers.series import read_adjacency, read_series

HEAD = "773869,767541,767542\n"
ROWS = "1,2,3\n4,5,6\n7,8,9.5\n"


@pytest.fixture
def file(tmp_path):
    def write(text, name="series.csv"):
        path = tmp_path / name
        path.write_bytes(lzma.compress(text.encode()) if name.endswith(".xz") else text.encode())
        return path

    return write


def test_a_header_names_the_sensors_and_a_column_of_times_is_left_out(file, caplog):
    plain = read_series(file(HEAD + ROWS, "series.csv.xz"))
    assert plain.sensors == ("773869", "767541", "767542")
    np.testing.assert_array_equal(plain.values, np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9.5]]))
    assert plain.values.dtype == np.float32
    assert not plain.missing.any()
    timed = "".join(f"{a},{b}\n" for a, b in zip(["", "01:00", "01:05", "01:10"], (HEAD + ROWS).split(), strict=True))
    assert "first column" not in caplog.text
    np.testing.assert_array_equal(read_series(file(timed)).values, plain.values)
    assert "the first column, 'column1', is taken for times and left out" in caplog.text


def test_missing_values_are_refused_or_filled_and_counted(file, caplog):
    path = file(HEAD + ",2,3\n4,nan,0\n,,6\n7,8,NA\n")
    with pytest.raises(ValueError, match=r"5 of the 12 values .* missing, the first on line 2 .* sensor 773869: fill"):
        read_series(path)
    forward = read_series(path, missing="forward")
    np.testing.assert_array_equal(forward.values, np.float32([[4, 2, 3], [4, 2, 0], [4, 2, 6], [7, 8, 6]]))
    assert not forward.missing.any()
    assert "5 of the 12 values" in caplog.text
    assert "they count as targets too" in caplog.text
    masked = read_series(path, missing="mask", missing_value=0)
    assert masked.missing.tolist() == [
        [True, False, False],
        [False, True, True],
        [True, True, False],
        [False, False, True],
    ]
    np.testing.assert_array_equal(masked.values[1], np.float32([4, 2, 3]))
    with pytest.raises(ValueError, match=r"the sensor 767542 of .* has no value at all: leave its column out"):
        read_series(file(HEAD + "1,2,\n3,4,\n"), missing="mask")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROWS.replace("1,2,3", "1.5,2.5,3.5"), r"the first line of .* holds numbers \(1.5, 2.5, 3.5"),
        (HEAD + "1,2,3\n4,x,6\n", r"line 3 of .* has 'x' in column 767541, which is no finite number"),
        (HEAD + "1,2,inf\n", r"line 2 of .* has 'inf' in column 767542"),
        (HEAD + "1,2,1e300\n", "has '1e300' in column 767542"),
        (HEAD + "1,2\n", r"line 2 of .* has 2 field"),
        ("a,b,a\n1,2,3\n", "names the field 'a' twice"),
        (HEAD, "has no line below the first"),
    ],
)
def test_other_series_get_a_sentence(text, message, file):
    with pytest.raises(ValueError, match=message) as caught:
        read_series(file(text))
    assert "\n" not in str(caught.value)


def test_an_adjacency_belongs_to_its_sensors(file):
    sensors = ("a", "b", "c")
    good = "1,0.5,0\n0.5,1,0.25\n0,0.25,1\n"
    weights = read_adjacency(file(good), sensors)
    np.testing.assert_array_equal(weights, np.float32([[1, 0.5, 0], [0.5, 1, 0.25], [0, 0.25, 1]]))
    for text, message in (
        ("1,0\n0,1\n", r"is of 2 sensors but the series has 3: give one row"),
        (f"a,b,c\n{good}", r"has 4 rows of 3 weights: give a square matrix without a line of names"),
        (good.replace("0.5,1,", "0.4,1,"), r"is not symmetric: 0.5 in row 1, column 2 but 0.4 the other way"),
        (good.replace("0.25", "-0.25"), r"row 2, column 3 of .* holds -0.25: give weights that are not negative"),
        (good.replace("0.25", "x"), r"has 'x' in column"),
        (good.replace("0.25", "nan"), r"holds nan"),
    ):
        with pytest.raises(ValueError, match=message):
            read_adjacency(file(text), sensors)
