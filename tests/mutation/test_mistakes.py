"""The list of planted mistakes keeps up with the library: what `run.py` is to plant can still be planted."""

import ast
import functools

import pytest
from mutation.mistakes import ROOT, Mistake, read_mistakes


@functools.cache
def source(path):
    return (ROOT / path).read_text(encoding="utf-8")


def test_every_mistake_can_be_planted_and_its_tests_are_there():
    mistakes = read_mistakes()
    assert len(mistakes) >= 60
    assert len({(m.file, m.old, m.new) for m in mistakes}) == len({(m.file, m.name) for m in mistakes}) == len(mistakes)
    for mistake in mistakes:
        ast.parse(mistake.planted(source(mistake.file)))
        assert mistake.tests, mistake.name
        for test in mistake.tests:
            path, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}(" in source(f"tests/{path}"), f"{mistake.name}: no {test}"


def test_a_text_that_is_gone_or_stands_twice_is_refused():
    mistake = Mistake("loss negated", "jaxkd/x.py", "return loss", "return -loss", ())
    assert mistake.planted("x = 1\nreturn loss\n") == "x = 1\nreturn -loss\n"
    for text, count in (("return 1", 0), ("return loss\nreturn loss", 2)):
        with pytest.raises(
            ValueError, match=rf"'loss negated' replaces a text that stands {count} times in jaxkd/x\.py"
        ):
            mistake.planted(text)
