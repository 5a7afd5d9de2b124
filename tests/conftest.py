"""Eight CPU devices and the strictest settings JAX has, set before any back end starts."""

import gc
import importlib.metadata
import os
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
