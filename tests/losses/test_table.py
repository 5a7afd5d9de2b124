"""The table of losses: one row per loss, and whatever stands around the table stays."""

import pytest

from jaxkd import losses
from jaxkd.losses import table


def test_the_table_has_a_row_for_each_loss_and_replaces_an_old_one():
    text = f"# Losses\n\n{table.HEAD}\n| old | old |\n| older | older |\n\nAfter.\n"
    written = table.with_table(text)
    assert written.startswith("# Losses\n\n| Loss ")
    assert written.endswith(" |\n\nAfter.\n")
    assert "| old" not in written
    assert [line.split("`")[1] for line in written.splitlines() if line.startswith("| `")] == losses.__all__
    assert table.with_table(written) == written
    assert (
        "| `ofd` | A Comprehensive Overhaul of Feature Distillation | ICCV 2019 | https://arxiv.org/abs/1904.01866 | "
        "per example | connectors: `objectives.ofd` |"
    ) in written


def test_a_readme_without_the_table_is_named():
    with pytest.raises(ValueError, match="no table of losses: put the line"):
        table.with_table("# Losses\n")


def test_the_readme_holds_the_table_of_todays_losses():
    text = table.README.read_text()
    assert table.with_table(text) == text, "run python -m jaxkd.losses.table"
