"""Parts of all benchmarks: flags, rounds in which peers alternate, tables, and JSON and Markdown files.

It needs neither tyro nor rich, so that a bare machine with an accelerator runs the benchmarks too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd import reports
from jaxkd.experiment.domains import COUNT, POSITIVE, Domain
from jaxkd.files import explain_write_errors, prepare_file


def flags(description: str, *, smoke: Mapping[str, Any], **fields: Any) -> argparse.Namespace:
    """Reads the command line: a flag for every field, and `--smoke`.

    Args:
      description: Shown by `--help`.
      smoke: Field -> the default that `--smoke` puts in place of the usual one.
      **fields: Name -> (default, help), or (default, help, names to choose from or domain). A tuple as default takes
        several words of its members' type. Whole numbers are at least 1 and others above 0, if there is no domain.
        Without a default, a name is taken.

    Returns:
      Name -> value.

    Raises:
      SystemExit: With code 2 after the message for an unknown flag or a value outside its domain.
      OSError: If the folder of `out` cannot be made.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="shrink to a run that only shows that it works")
    for name, (default, text, *more) in fields.items():
        usual = "" if default in (None, ()) else f" (default: {default})"
        options: dict[str, Any] = {"help": text + usual, "default": default}
        kind = type(default[0] if isinstance(default, tuple) and default else default)
        read = str if default == "" else _READERS.get(kind, _READERS[str])
        if more and isinstance(more[0], Domain):
            read = _reader(kind, more[0])
        elif more:
            options |= {"choices": list(more[0]), "metavar": "NAME"}
        if isinstance(default, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(default, tuple):
            options |= {"nargs": "+", "type": read}
        else:
            options["type"] = read
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    if parser.parse_known_args()[0].smoke:
        parser.set_defaults(**smoke)
    found = parser.parse_args()
    if "out" in fields and Path(fields["out"][0]).suffix:  # a file; else a folder of several
        prepare_file(found.out)
    return found


def _reader(kind: Callable[[str], Any], domain: Domain | None) -> Callable[[str], Any]:
    """A function that reads a word of the command line and refuses a value outside the domain."""

    def read(word: str) -> Any:
        try:
            value = kind(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is no {kind.__name__}") from None
        if value == "":
            raise argparse.ArgumentTypeError("an empty text: give another one, or leave the flag out")
        if domain is not None and not domain.holds(value):
            raise argparse.ArgumentTypeError(f"{word}: give {domain.advice(value)}")
        return value

    return read


_READERS = {int: _reader(int, COUNT), float: _reader(float, POSITIVE), str: _reader(str, None)}


def alternate(
    contestants: Mapping[str, Callable[[], Any]], *, rounds: int, seconds: float
) -> dict[str, np.ndarray[Any, Any]]:
    """Measures the seconds of a call of each contestant, once a round, with another one first in every round.

    Args:
      contestants: Name -> the call that is timed; it waits for its own result.
      rounds: Number of rounds.
      seconds: Least length of one contestant's turn.

    Returns:
      Name -> [rounds].
    """
    names = list(contestants)
    times = {name: np.empty(rounds) for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            times[name][number] = seconds_per_call(contestants[name], seconds)
    return times


def seconds_per_call(call: Callable[[], Any], least: float) -> float:
    """Mean seconds of a call, over as many calls as fill the least length."""
    start, count, elapsed = time.perf_counter(), 0, 0.0
    while count == 0 or elapsed < least:
        call()
        count, elapsed = count + 1, time.perf_counter() - start
    return elapsed / count


def spread(values: Any, *, scale: float = 1.0) -> str:
    """Formats values as "median (lower quartile..upper quartile)"."""
    low, middle, high = (f"{scale * x:.4g}" for x in np.percentile(values, [25, 50, 75]))
    return f"{middle} ({low}..{high})"


def ratio(one: Any, other: Any) -> str:
    """Spread of one / other, round by round."""
    return spread(np.asarray(one) / np.asarray(other))


def device_line() -> str:
    """Devices, cores and versions, for the head of a table."""
    device = jax.devices()[0]
    kind = f"{jax.device_count()} x {device.device_kind}" if jax.device_count() > 1 else device.device_kind
    return f"{kind} ({device.platform}), {os.cpu_count()} host cores, jax {jax.__version__}, {platform.machine()}"


def is_accelerator() -> bool:
    """True on an accelerator, which needs larger sizes than a CPU."""
    return jax.default_backend() != "cpu"


def publish(
    out: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    notes: Sequence[str] = (),
    **more: Any,
) -> None:
    """Prints a table and writes it as JSON and as Markdown.

    Args:
      out: The JSON file; the Markdown file has its name with another ending.
      title: Above the table.
      rows: Key -> value of each row; keys that are no column go into the JSON alone.
      columns: Key -> header.
      notes: Sentences below the table.
      **more: Further entries of the JSON.
    """
    text = f"{title}\n{device_line()}\n\n{reports.markdown(rows, columns)}"
    text += "".join(f"\n{note}" for note in notes) + ("\n" if notes else "")
    print(text, flush=True)
    path = Path(out)
    found = {"title": title, "device": device_line(), "rows": rows, "notes": list(notes), **more}
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2, default=_plain))
        path.with_suffix(".md").write_text(text)


def _plain(value: Any) -> Any:
    """Lists and numbers in place of a value that JSON has no form for."""
    return np.asarray(value).tolist()
