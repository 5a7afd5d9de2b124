"""Tokenizers: special tokens, words, cuts, files of published ones, and what is refused."""

import json
import sys

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import token_cache

tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["a good film, and a good plot", "a bad film", "Good plots are good films!", "can't be bad"]
TOKENIZER = data.train_tokenizer(TEXTS * 3, 60)


def test_tokens_with_special_ones_words_and_offsets():
    found = TOKENIZER(["Good film!", ""], max_length=16)
    pieces = TOKENIZER.tokens_of(found.tokens[0])
    assert (pieces[0], pieces[-1], "".join(pieces[1:-1])) == ("[CLS]", "[SEP]", "▁good▁film!")
    assert TOKENIZER.tokens_of(found.tokens[1]) == ["[CLS]", "[SEP]"]
    words, offsets = found.words[0], found.offsets[0]
    assert words[[0, -1]].tolist() == [-1, -1]
    spans = ["Good film!"[offsets[words == w].min() : offsets[words == w].max()].strip() for w in range(3)]
    assert spans == ["Good", "film", "!"]
    assert (found.cut, found.empty) == (0, 1)
    assert all(x.dtype == np.int32 for part in found[:4] for x in part)
    assert found.offsets[1].shape == (2, 2)
    assert (TOKENIZER.size, TOKENIZER.pad) == (51, 0)
    without = TOKENIZER(["Good film!"], max_length=16, details=False)
    assert (without.words, without.offsets) == ([], [])


def test_pairs_have_segments():
    found = TOKENIZER(["a film"], ["a plot"], max_length=16)
    pieces, segments = TOKENIZER.tokens_of(found.tokens[0]), found.segments[0]
    assert "".join(pieces) == "[CLS]▁a▁film[SEP]▁a▁plot[SEP]"
    assert "".join(p for p, s in zip(pieces, segments, strict=True) if s) == "▁a▁plot[SEP]"


def test_long_texts_are_cut_and_counted_or_refused():
    found = TOKENIZER(["a good film", "a " * 50], max_length=6)
    assert [len(row) for row in found.tokens] == [5, 6]
    assert found.cut == 1
    assert TOKENIZER.tokens_of(found.tokens[1])[-1] == "[SEP]"
    both = TOKENIZER(["a " * 50], ["a plot"], max_length=9)  # the longer one is cut
    assert both.segments[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"row 1 has 52 tokens, but at most 6 are allowed.*--too-long cut"):
        TOKENIZER(["a good film", "a " * 50], max_length=6, too_long="refuse")
    assert TOKENIZER(["a " * 50], max_length=60).cut == 0  # no setting of an earlier call stays


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["a"], {"max_length": 2}, r"max_length is 2, but .* adds 2 special tokens"),
        (["a"], {"max_length": 4, "pairs": ["b"]}, r"max_length is 4, but .* adds 3 special tokens"),
        (["a"], {"max_length": 8, "too_long": "drop"}, "too_long is 'drop'"),
        (["a", 5], {"max_length": 8}, "row 1 is 5, which is no text"),
        ("a", {"max_length": 8}, "one text were given"),
        (["a"], {"max_length": 8, "pairs": []}, "1 texts and 0 pairs were given"),
    ],
)
def test_calls_that_are_refused(texts, options, message):
    with pytest.raises(ValueError, match=message):
        TOKENIZER(texts, **options)


def test_a_published_file_with_settings_of_its_own(tmp_path):
    file = tmp_path / "tokenizer.json"
    TOKENIZER.save(file)
    content = json.loads(file.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"]["strategy"] = {"Fixed": 12}
    file.write_text(json.dumps(content))
    for place in (file, tmp_path, str(tmp_path)):
        found = data.open_tokenizer(place)
        assert (found.size, found.pad, found.fingerprint) == (51, 0, TOKENIZER.fingerprint)
        for own, other in zip(found(TEXTS, max_length=64).tokens, TOKENIZER(TEXTS, max_length=64).tokens, strict=True):
            np.testing.assert_array_equal(own, other)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "[MASK]"}}')
    assert data.open_tokenizer(tmp_path).pad == 4
    file.write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read as a tokenizer .*: copy or download it anew"):
        data.open_tokenizer(tmp_path)
    for place in (tmp_path / "nothing", tmp_path.parent):
        with pytest.raises(ValueError, match=r"has no tokenizer.json and no vocab.txt"):
            data.open_tokenizer(place)


def test_the_vocabulary_of_bert(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "film", "##s", "Film"]))
    tokenizer = data.open_tokenizer(tmp_path)
    assert tokenizer(["Good films zzz"], max_length=9).tokens[0].tolist() == [2, 4, 5, 6, 1, 3]
    assert (tokenizer.pad, tokenizer.size) == (0, 8)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert data.open_tokenizer(tmp_path)(["Film"], max_length=9).tokens[0].tolist() == [2, 7, 3]


def test_training_is_the_same_each_time():
    """The package's hash tables have new seeds each time, as in new processes: its WordPiece pieces differ."""
    assert {data.train_tokenizer(TEXTS * 3, 60).fingerprint for _ in range(4)} == {TOKENIZER.fingerprint}
    assert data.train_tokenizer(TEXTS, 60, lowercase=False).fingerprint != TOKENIZER.fingerprint
    spaced, plain = TOKENIZER(["  good \t film ", "good film"], max_length=9).tokens
    np.testing.assert_array_equal(spaced, plain)
    with pytest.raises(ValueError, match=r"size is 9, but 5 special tokens and the different characters of the texts"):
        data.train_tokenizer(TEXTS, 9)


def test_tokens_are_kept_and_found_again(tmp_path, monkeypatch, caplog):
    options = {"max_length": 8, "folder": tmp_path / "tokens"}
    first = token_cache.encode(TOKENIZER, TEXTS, TEXTS[::-1], **options)
    other = token_cache.encode(TOKENIZER, TEXTS, **options)
    assert len(list((tmp_path / "tokens").iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(data.Tokenizer, "__call__", lambda *_, **__: pytest.fail("tokenised again"))
        for expected, pairs in ((first, TEXTS[::-1]), (other, None)):
            found = token_cache.encode(TOKENIZER, TEXTS, pairs, **options)
            for own, their in zip(
                [*found.tokens, *found.segments], [*expected.tokens, *expected.segments], strict=True
            ):
                np.testing.assert_array_equal(own, their)
                assert own.dtype == np.int32
            assert (found.cut, found.empty) == (expected.cut, expected.empty)
            assert found.cut
    assert max(map(len, token_cache.encode(TOKENIZER, TEXTS, **{**options, "max_length": 7}).tokens)) == 7
    with pytest.raises(ValueError, match="at most 8 are allowed"):
        token_cache.encode(TOKENIZER, TEXTS, too_long="refuse", **options)
    for file in (tmp_path / "tokens").iterdir():
        assert file.suffix == ".npz"
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 255
        file.write_bytes(raw[: 3 * len(raw) // 4])
    found = token_cache.encode(TOKENIZER, TEXTS, **options)
    assert [m.endswith("its texts are tokenised again.") for m in caplog.messages] == [True]
    np.testing.assert_array_equal(np.concatenate(found.tokens), np.concatenate(other.tokens))


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'need the package tokenizers: pip install "jaxkd\[text\]"'):
        data.open_tokenizer(tmp_path)
