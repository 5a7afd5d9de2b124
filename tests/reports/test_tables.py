"""Tables hold the numbers that they were given."""

import jax.numpy as jnp
import numpy as np
import rich.console

from jaxkd import reports

ROWS = [
    {"model": "teacher", "parameters": 123456, "accuracy": 0.97},
    {"model": "a|b", "parameters": np.int32(7), "accuracy": float("nan"), "KL": 0.123456},
]

COLUMNS = {"model": "model", "parameters": "parameters", "accuracy": "accuracy (%)", "KL": "KL to the teacher"}


def test_mean_std_is_that_of_the_sample():
    assert reports.mean_std([0.90, 0.92], scale=100, digits=2) == f"91.00 ± {np.std([90, 92], ddof=1):.2f}"
    assert reports.mean_std(jnp.array([0.5])) == reports.mean_std(0.5) == "0.50"
    assert reports.mean_std([]) == "-"
    assert reports.mean_std([0.5, 0.7, float("nan")]) == "0.60 ± 0.14, 1 diverged"
    assert reports.mean_std([1.0, float("nan")]) == "1.00, 1 diverged"
    assert reports.mean_std([float("nan")] * 2) == reports.mean_std(float("nan")) == "diverged"


def test_table_shows_every_cell():
    console = rich.console.Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(reports.table(ROWS, COLUMNS, title="Digits", caption="5 seeds"))
    console.file.close()
    shown = console.export_text()
    for part in ("Digits", "5 seeds", *COLUMNS.values(), "teacher", "123,456", "0.97", "0.1235", "a|b"):
        assert part in shown


def test_markdown_has_the_same_cells():
    assert reports.markdown(ROWS, COLUMNS).splitlines() == [
        "| model | parameters | accuracy (%) | KL to the teacher |",
        "| :-- | --: | --: | --: |",
        "| teacher | 123,456 | 0.97 | - |",
        "| a\\|b | 7 | - | 0.1235 |",
    ]
    assert reports.markdown(ROWS, ["model"]).splitlines()[0] == "| model |"


def test_brackets_and_colons_of_a_title_are_shown_as_they_are(capsys):
    title = "folder:[/data] [bold]x :cat:"
    reports.show(reports.table([{"network": "[/red] :dog:"}], ["network"], title=title))
    shown = capsys.readouterr().out
    assert title in " ".join(shown.split())
    assert "[/red] :dog:" in shown
