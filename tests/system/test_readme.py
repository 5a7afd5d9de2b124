"""The README's promises: its code runs, its commands are the ones that CI runs, its table of methods is whole."""

import pathlib
import re
import subprocess
import sys

from jaxkd.losses import table

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_code_blocks_run_in_order(tmp_path):
    """As a reader would type them, in a fresh Python: each block sees what those before it defined."""
    program = tmp_path / "readme.py"
    program.write_text("\n".join(BLOCKS))
    done = subprocess.run([sys.executable, "-W", "error", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "extreme logits" in done.stdout
    assert "masked classes" in done.stdout
    accuracies = [float(a) for a in re.findall(r"'accuracy': ([\d.]+)", done.stdout)]
    assert len(accuracies) == 3
    assert accuracies[0] > 0.95, "the teacher of the example learns"
    assert min(accuracies[1:]) > 0.6, "the students of the examples learn"
    assert "gradient_cosine/kd" in done.stdout


def test_there_are_two_commands_and_ci_runs_the_second():
    assert "pip install -e . && python experiments/digits.py" in README
    assert 'pip install -e ".[test]" && pytest' in README
    assert 'pip install -e ".[test]" && pytest' in (ROOT / ".ci" / "run").read_text()


def test_example_is_thirty_lines():
    body = [line for line in BLOCKS[0].splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(body) <= 30


def test_the_table_of_losses_is_up_to_date():
    text = table.README.read_text()
    assert table.with_table(text) == text, "run python -m jaxkd.losses.table"


def test_relative_links_and_files_exist():
    for path in re.findall(r"`(experiments/[\w/]+\.py)`", README):
        assert (ROOT / path).exists(), path
