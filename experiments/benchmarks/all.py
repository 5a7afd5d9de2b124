"""Every benchmark in this folder, one after the other in a process of its own, with sizes that suit the device.

Each writes its figures into NAME.json and its table into NAME.md; one that fails is reported at the end, after the
others have run. On Linux all of them, PyTorch included, use large memory pages.

    python experiments/benchmarks/all.py --out runs/benchmarks
    python experiments/benchmarks/all.py --out runs/benchmarks --only against_torch large_vocabulary
"""

import os
import subprocess
import sys
from pathlib import Path

import _timing as timing

from jaxkd.experiment import main

FOLDER = Path(__file__).parent
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # read when a process starts
THERE = tuple(sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_") and p.stem != "all"))


def succeeds(name, config):
    """Runs one and passes on what it prints."""
    print(f"== {name}", flush=True)
    words = [str(FOLDER / f"{name}.py"), "--out", str(Path(config.out) / f"{name}.json")]
    words += ["--smoke"] if config.smoke else []
    try:
        done = subprocess.run([sys.executable, *words], env=LARGE_PAGES | os.environ, timeout=config.limit, check=False)
    except subprocess.TimeoutExpired:
        print(f"{name} took longer than {config.limit} seconds", file=sys.stderr)
        return False
    return done.returncode == 0


def benchmark() -> None:
    config = timing.flags(
        __doc__,
        smoke={"only": ("large_vocabulary",)},
        only=(THERE, "names of the benchmarks to run", THERE),
        limit=(3600, "seconds after which a benchmark is stopped"),
        out=("runs/benchmarks", "folder for the figures and tables"),
    )
    failed = [name for name in config.only if not succeeds(name, config)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; what they printed stands above")


if __name__ == "__main__":
    main(benchmark)
