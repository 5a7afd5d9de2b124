"""The READMEs' promises: their code runs, their links lead somewhere, and the map of the library is whole."""

import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys

import pytest

import jaxkd

ROOT = pathlib.Path(__file__).parents[2]
FACE = ROOT / "README.md"
ROOMS = sorted(path for top in ("jaxkd", "experiments", "tests") for path in (ROOT / top).rglob("README.md"))
LIBRARY = ROOT / "jaxkd" / "README.md"

DRIVER = """
import contextlib, io, json, pathlib, sys, traceback

found = {}
for path in sys.argv[1:]:
    lines, inside = [], False
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside, line = line == "```python", ""
        lines.append(line if inside else "")
    said, error = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(said):
            exec(compile("\\n".join(lines), path, "exec"), {"__name__": "__main__"})
    except Exception:
        error = traceback.format_exc()
    found[path] = [said.getvalue(), error]
print(json.dumps(found))
"""
"""Runs the blocks of each file in order, with names of their own; the lines of a traceback are those of the file."""


def name(path):
    return str(path.relative_to(ROOT))


def run(paths, folder):
    """Path -> (what it printed, its traceback), from a fresh Python in which warnings are errors."""
    command = [sys.executable, "-W", "error", "-c", DRIVER, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_code_of_the_face_runs_as_a_reader_would_type_it(tmp_path):
    said, error = run([FACE], tmp_path)[str(FACE)]
    assert not error, error
    assert "extreme logits" in said
    assert "masked classes" in said
    accuracies = [float(a) for a in re.findall(r"'accuracy': ([\d.]+)", said)]
    assert len(accuracies) == 3
    assert accuracies[0] > 0.95, "the teacher of the example learns"
    assert accuracies[1] > 0.6, "the student of the example learns"


def test_the_code_of_all_other_readmes_runs(tmp_path):
    """They share a Python, since importing the library takes longer than most of them."""
    found = run(ROOMS, tmp_path)
    assert not (broken := "\n".join(error for _, error in found.values() if error)), broken
    assert "gradient_cosine/kd" in found[str(ROOT / "jaxkd" / "train" / "README.md")][0]


def test_a_broken_block_is_found_and_named(tmp_path):
    (tmp_path / "README.md").write_text("# Broken\n\n```python\nx = 1\n```\n\nText.\n\n```python\nx / 0\n```\n")
    [(_, error)] = run([tmp_path / "README.md"], tmp_path).values()
    assert 'README.md", line 10' in error
    assert "ZeroDivisionError" in error


def test_there_are_two_commands_and_ci_runs_the_second():
    face = FACE.read_text()
    assert "pip install -e . && python experiments/digits.py" in face
    assert 'pip install -e ".[test]" && pytest' in face
    assert 'pip install -e ".[test]" && pytest' in (ROOT / ".ci" / "run").read_text()


def test_the_face_is_short():
    text = FACE.read_bytes()
    assert len(text) <= 10_000
    block = re.search(r"```python\n(.*?)```", text.decode(), re.DOTALL)[1]
    assert len([x for x in block.splitlines() if x.strip() and not x.startswith(("import", "from"))]) <= 30


def slugs(text):
    """Anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [FACE, *ROOMS], ids=name)
def test_relative_links_and_files_exist(path):
    text = path.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in slugs(target.read_text()), f"{link}: the page has no such heading"
    for file in re.findall(r"\b((?:experiments|jaxkd|tests)/[\w/]+\.py)\b", text.partition("## Changelog")[0]):
        assert (ROOT / file).exists(), file


def test_experiments_of_the_face_exist():
    table = FACE.read_text().partition("| Experiment")[2].partition("\n\n")[0]
    programs = re.findall(r"^\| `([\w/]+\.py)", table, re.MULTILINE)
    assert programs
    for program in programs:
        assert (ROOT / "experiments" / program).exists(), program


TREE_LINE = re.compile(r"^( *)- \[?`([\w/]+(?:\.py)?)`(?:\]\([^)]*\))?: \S", re.MULTILINE)


def lines_of_the_tree():
    """Paths below jaxkd/ that have a line on the library's page; nested lines stand below their folder's."""
    folders = []
    for spaces, path in TREE_LINE.findall(LIBRARY.read_text()):
        folders[len(spaces) // 2 :] = [path]
        yield "".join(folders)


def test_every_file_of_the_library_has_a_line():
    files = {str(p.relative_to(LIBRARY.parent)) for p in LIBRARY.parent.rglob("*.py") if p.name != "__init__.py"}
    folders = {f"{p.parent.relative_to(LIBRARY.parent)}/" for p in LIBRARY.parent.glob("*/**/__init__.py")}
    listed = list(lines_of_the_tree())
    assert len(listed) == len(set(listed)), "a file has two lines"
    assert set(listed) - files - folders == set(), "lines without a file"
    assert (files | folders) - set(listed) == set(), "files without a line"


def test_the_changelog_begins_with_this_version():
    assert re.search(r"## Changelog\n\n### (\S+)", LIBRARY.read_text())[1] == jaxkd.__version__
    assert jaxkd.__version__ == importlib.metadata.version("jaxkd"), "install it again"
