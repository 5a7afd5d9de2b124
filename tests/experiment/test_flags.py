"""Where an experiment keeps what JAX compiles."""

import os
import subprocess
import sys

import jax
import pytest

from jaxkd.experiment import keep_programs

PROGRAM = """
import jax, jax.numpy as jnp
from jaxkd.experiment import keep_programs
keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4)))
print(jax.config.jax_compilation_cache_dir or "nowhere", any("cache_hits" in name for name in found))
"""


def start(**environment):
    """Where programs are kept, and whether one was found there."""
    usual = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], env={**usual, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_second_start_finds_what_the_first_compiled(tmp_path):
    folder, found = start(XDG_CACHE_HOME=str(tmp_path))
    assert folder.startswith(str(tmp_path / "jaxkd"))
    assert found == "False"
    assert start(XDG_CACHE_HOME=str(tmp_path)) == [folder, "True"]


@pytest.mark.parametrize(("name", "value"), [("JAX_COMPILATION_CACHE_DIR", ""), ("XDG_CACHE_HOME", "{file}")])
def test_it_can_be_switched_off_and_does_without_a_folder(name, value, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("no folder")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv(name, value.format(file=file))
    usual = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        keep_programs()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", usual)
