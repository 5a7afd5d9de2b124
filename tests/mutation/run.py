"""Plants mistakes in a copy of the library, one at a time, and shows which of them the tests notice.

    python tests/mutation/run.py [--only SUBSTRING ...] [--jobs N]

Each mistake of the TOML files beside this one is tried with the few tests that it names. The exit code is 1 if a
mistake survives whose entry does not explain why, if its text is no longer in the file exactly once, or if its tests
fail without it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pathlib
import queue
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as the tests do, but before the process that forks starts
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a process with threads had better not fork
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from mutation.mistakes import ROOT, Mistake, read_mistakes

COPIED = ("jaxkd", "experiments", "tests", "pyproject.toml", "README.md")
PATIENCE = 600  # seconds for the tests of one mistake
ENDLESS = 99  # exit code in place of pytest's
KILLED, SURVIVED, EXPLAINED, BROKEN = "killed", "SURVIVED", "explained", "BROKEN"

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["jax", "flax.linen", "flax.nnx", "optax.contrib", "orbax.checkpoint", "grain", "tensorboardX", "tyro", "pytest"]
)
"""Forks processes from one that has imported everything but the library, which takes most of a short test's time."""


def start_pytest(folder: str, said: str, words: list[str]) -> None:
    """Runs pytest in a copy of the tree, in a process of its own.

    Args:
      folder: The copy.
      said: File for everything that is printed.
      words: Arguments of pytest.
    """
    import pytest

    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = folder
    sys.path.insert(0, folder)
    import jaxkd

    assert pathlib.Path(jaxkd.__file__).is_relative_to(folder), f"{jaxkd.__file__} was imported, not the copy"
    sys.exit(int(pytest.main(words)))


class Copy:
    """Copy of the tree, in which one mistake stands at a time.

    Args:
      folder: Folder of the copy, which must not exist.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.mkdir()
        leave_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
            else:
                shutil.copy2(ROOT / name, folder / name)
        self._stamp = 1_000_000_000

    def write(self, file: str, text: str) -> None:
        """Writes a file with a time of change that it never had, so that Python compiles it anew."""
        (self.folder / file).write_text(text, encoding="utf-8")
        self._stamp += 2
        os.utime(self.folder / file, (self._stamp, self._stamp))

    def test(self, tests: Sequence[str]) -> tuple[int, str]:
        """Runs some tests; returns pytest's exit code and what it has printed."""
        said = self.folder / "said.txt"
        cache = ROOT / ".pytest_cache" / "mutation"  # compiled programs, which are those of the right library too
        options = ["-x", "-q", "-n", "0", "-o", f"cache_dir={cache}"]
        words = [*options, *(f"tests/{test}" for test in tests)]
        process = FORKS.Process(target=start_pytest, args=(str(self.folder), str(said), words))
        process.start()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
            return ENDLESS, f"the tests did not end within {PATIENCE} s"
        return process.exitcode, said.read_text(encoding="utf-8", errors="replace")

    def attempt(self, mistake: Mistake) -> tuple[str, str]:
        """Plants one mistake, runs its tests, takes it out; returns a verdict and what there is to say of it."""
        right = (self.folder / mistake.file).read_text(encoding="utf-8")
        try:
            self.write(mistake.file, mistake.planted(right))
            code, said = self.test(mistake.tests)
        except ValueError as error:
            return BROKEN, str(error)
        finally:
            self.write(mistake.file, right)
        if code == 0:
            return (EXPLAINED, mistake.explained) if mistake.explained else (SURVIVED, "its tests pass")
        if code in (3, 4, 5, ENDLESS):  # of pytest: an internal error, a wrong command, no tests
            return BROKEN, said[-2000:]
        if mistake.explained:
            return BROKEN, "it was noticed, although it is explained why it cannot be: take out `explained`"
        return KILLED, next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), "")


def run(mistakes: Sequence[Mistake], jobs: int, *, check: bool = True) -> int:
    """Tries the mistakes and prints the table.

    Args:
      mistakes: The mistakes.
      jobs: Number of copies in which mistakes are tried side by side.
      check: Whether the tests are first run without any mistake.

    Returns:
      Exit code: 1 if a mistake survived unexplained, or could not be tried.
    """
    with tempfile.TemporaryDirectory(prefix="jaxkd-mutation-") as folder:
        copies: queue.Queue[Copy] = queue.Queue()
        for number in range(jobs):
            copies.put(Copy(pathlib.Path(folder).resolve() / str(number)))
        if check:
            code, said = copies.queue[0].test(sorted({test for mistake in mistakes for test in mistake.tests}))
            if code:
                print(f"without any mistake the tests do not pass:\n{said[-4000:]}")
                return 1

        def attempt(mistake: Mistake) -> tuple[str, str, float]:
            copy, began = copies.get(), time.monotonic()
            try:
                return *copy.attempt(mistake), time.monotonic() - began
            finally:
                copies.put(copy)

        counts = dict.fromkeys((KILLED, EXPLAINED, SURVIVED, BROKEN), 0)
        with ThreadPoolExecutor(jobs) as pool:
            for number, (mistake, found) in enumerate(zip(mistakes, pool.map(attempt, mistakes), strict=True), 1):
                verdict, said, seconds = found
                counts[verdict] += 1
                place = mistake.file.removeprefix("jaxkd/")
                print(f"[{number:3}/{len(mistakes)}] {verdict:9} {seconds:5.1f} s  {place}: {mistake.name}", flush=True)
                if verdict != KILLED:
                    print(f"            {said}", flush=True)
    print(f"{len(mistakes)} planted: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(counts[SURVIVED] + counts[BROKEN] > 0)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names or files of the mistakes to try")
    parser.add_argument("--jobs", type=int, default=1, help="mistakes that are tried side by side")
    parser.add_argument("--no-check", action="store_true", help="do not run the tests without a mistake first")
    given = parser.parse_args()
    chosen = [m for m in read_mistakes() if any(part in f"{m.file}: {m.name}" for part in given.only)]
    if not chosen:
        parser.error(f"no mistake has {' or '.join(given.only)} in its name or file: leave --only out to try all")
    sys.exit(run(chosen, max(1, given.jobs), check=not given.no_check))


if __name__ == "__main__":
    main()
