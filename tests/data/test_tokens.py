"""Texts to tokens."""

import numpy as np
import pytest

from jaxkd.data import SEPARATOR, VOCABULARY, encode_bytes


def test_tokens_are_the_bytes_plus_one_and_padding_is_zero():
    texts = np.array(["aé", b"", "x" * 20], object)
    batch = encode_bytes(6)({"text": texts, "label": np.arange(3)})
    assert set(batch) == {"tokens", "token_mask", "label"}
    raw = "aé".encode()
    np.testing.assert_array_equal(batch["tokens"][0], [b + 1 for b in raw] + [0] * (6 - len(raw)))
    np.testing.assert_array_equal(batch["tokens"][2], [ord("x") + 1] * 6)
    np.testing.assert_array_equal(batch["token_mask"].sum(1), [3, 0, 6])
    assert batch["tokens"].dtype == np.int32
    assert batch["token_mask"].dtype == bool


@pytest.mark.parametrize(
    ("first", "second"), [(3, 3), (30, 3), (3, 30), (30, 30), (0, 30), (30, 0), (0, 0), (5, 4), (4, 5)]
)
def test_two_sentences_share_the_row_and_the_longer_is_cut(first, second):
    length = 10
    batch = {"a": np.array(["a" * first]), "b": np.array(["b" * second])}
    row = encode_bytes(length)(batch)["tokens"][0]
    place = int(np.flatnonzero(row == SEPARATOR)[0])
    heads, tails = int((row == ord("a") + 1).sum()), int((row == ord("b") + 1).sum())
    assert place == heads
    assert heads <= first
    assert tails <= second
    assert heads + 1 + tails == min(length, first + 1 + second), "no room is wasted"
    if first + second > length - 1:
        assert heads >= min(first, 4)
        assert tails >= min(second, 4)


def test_the_premise_comes_first_and_fields_can_be_named():
    batch = {"hypothesis": np.array(["h"]), "premise": np.array(["p"]), "other": np.arange(1)}
    assert encode_bytes(5)(batch)["tokens"][0, 0] == ord("p") + 1
    row = encode_bytes(5, ["hypothesis"])(batch)
    assert row["tokens"][0, 0] == ord("h") + 1
    assert set(row) == {"tokens", "token_mask", "other"}


def test_every_byte_fits_the_vocabulary():
    row = encode_bytes(300)({"a": np.array([bytes(range(256))], object), "b": np.array(["b"])})["tokens"]
    assert row.max() == SEPARATOR == VOCABULARY - 1
    assert len(np.unique(row)) == VOCABULARY


def test_bad_fields_get_a_sentence():
    for length in (2, 3.5):
        with pytest.raises(ValueError, match=f"length {length}: give at least 3"):
            encode_bytes(length)
    for other in (None, 5, np.nan):
        with pytest.raises(ValueError, match=rf"`t` holds {other}, which is no text: give str or bytes"):
            encode_bytes(5)({"t": np.array(["a", other], object)})
    with pytest.raises(ValueError, match=r"but got \['nope'\] where the batch has the text fields \['t'\]"):
        encode_bytes(5, ["nope"])({"t": np.array(["a"])})
    three = {key: np.array(["a"]) for key in "xyz"}
    with pytest.raises(ValueError, match="one or two text fields"):
        encode_bytes(5)(three)
