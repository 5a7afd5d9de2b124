"""Files of tagged words."""

import pytest

from jaxkd import data
from jaxkd.data.readers.conll import read_conll

FILE = """-DOCSTART- -X- -X- O

# a comment in several words
U.N. NNP I-NP I-ORG
official NN I-NP O
Müller NNP I-NP B-PER
# # SYM O

\t

Rome\tB-LOC
"""


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "tags.conll"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_sentences_have_words_and_entities(file):
    path = file(FILE)
    texts = data.open_texts(f"conll:{path}")
    assert texts.texts == ["U.N. official Müller #", "Rome"]
    assert texts.fields["entities"] == [[(0, 4, "ORG"), (14, 20, "PER")], [(0, 4, "LOC")]]
    assert texts.labels is None
    for text, words in zip(texts.texts, texts.fields["words"], strict=True):
        assert " ".join(text[a:b] for a, b in words) == text
    assert read_conll(path).place(1) == f"line 11 of {path}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", r"line 2 of .*\('b'\) has one column: give a word and its tag, such as Berlin<TAB>B-LOC"),
        ("a O\n\nb c PER\n", r"line 3 of .* ends in no tag: 'PER' is no tag of an entity: write O, or B-TYPE"),
        ("# nothing here\n\n", r"has no tagged words"),
    ],
)
def test_lines_that_are_no_tagged_words_are_named(file, text, message):
    with pytest.raises(ValueError, match=message):
        read_conll(file(text))
