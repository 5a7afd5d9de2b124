"""Eight CPU devices and the strictest settings JAX has, set before any back end starts."""

import gc
import importlib.metadata
import os
import pathlib
import resource
import runpy
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        # Tests compile thousands of tiny programs and run each a few times: leave out LLVM's expensive passes.
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",  # programs too small to be worth compiling in parts
        # Eight devices share few cores: on a busy machine one may wait long for the others before all meet.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600 --xla_cpu_collective_timeout_seconds=600",
    )
)

if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones have no such flag, and abort at it
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # halves the time of small compilations

import jax
import pytest
from forked import Forks

gc.set_threshold(100_000, 50, 50)  # traced programs live on: looking for garbage among them took a sixth of the time
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """Programs that several tests (and workers, and what tests start) compile alike are compiled once."""
    if hasattr(config, "cache"):
        kept = {"jax_compilation_cache_dir": str(config.cache.mkdir("xla"))}
        kept |= {"jax_persistent_cache_min_compile_time_secs": 0.2, "jax_persistent_cache_min_entry_size_bytes": 0}
        for name, value in kept.items():
            jax.config.update(name, value)
            os.environ[name.upper()] = str(value)
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # what tests start is much alike
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # and imports the same modules


LONG = (
    "parallel/test_processes",
    "system/test_experiments",
    "system/test_crash",
    "system/test_readmes",
    "experiment/test_methods",
    "pytorch/test_published",
    "losses/test_properties",
    "train/test_students",
    "objectives/test_method_terms",
    "models/test_vision",
)
"""Files that take longest: they begin first, so that no worker has one left when the others have nothing."""


def pytest_collection_modifyitems(items):
    rank = {name: number for number, name in enumerate(LONG)}
    here = pathlib.Path(__file__).parent

    def place(item):
        name = str(item.path.relative_to(here).with_suffix("")) if item.path.is_relative_to(here) else ""
        return rank.get(name, len(LONG))

    items.sort(key=place)  # stable: the rest stays in its order


RESIDENT_GB = 1.5


@pytest.fixture(autouse=True, scope="module")
def caches_of_other_modules():
    """Drops what JAX has traced and compiled, where it has become much: a worker held 5 GB of programs at the end."""
    yield
    if resident_gb() > RESIDENT_GB:
        jax.clear_caches()
        gc.collect()


def resident_gb():
    """Memory that this process has now; where only the most that it ever had is known, that."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e9
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter, config):
    """Above pytest's last line, what the run has cost: workers have ended, and are children that were waited for."""
    yield
    if not hasattr(config, "workerinput"):
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
        most = max(own.ru_maxrss, children.ru_maxrss) / (1e9 if sys.platform == "darwin" else 1e6)
        terminalreporter.write_line(f"{seconds:.0f} processor seconds, {most:.1f} GB in the largest process")


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Starts programs in processes of their own without importing everything anew."""
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs a file as `python file ...` does, but in this process; returns the exit code and what was printed."""

    def start(path, *more):
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, more)])
        monkeypatch.syspath_prepend(str(path.parent))  # as Python does for a script
        try:
            runpy.run_path(str(path), run_name="__main__")
            code = 0
        except SystemExit as left:
            code = left.code or 0
        return code, capsys.readouterr()

    return start
