"""Programs in processes of their own, forked from one that has imported JAX and the library already.

Starting Python and importing everything takes two processor seconds; forking takes none. The process that forks starts
no back end, so each program has devices, threads and signals of its own.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pathlib
import pkgutil
import runpy
import signal
import subprocess
import sys
import textwrap
import time

import jaxkd


class Forked:
    """A program that was started; to be used as a `subprocess.Popen` whose streams are text files."""

    def __init__(self, forks: Forks, pid: int, streams: list[str]) -> None:
        self.pid, self.returncode, self._forks, self._streams = pid, None, forks, streams

    def poll(self):
        if self.returncode is None:
            self.returncode = self._forks.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout=None):
        began = time.monotonic()
        while self.poll() is None:
            if timeout is not None and time.monotonic() - began > timeout:
                self.kill()
                raise subprocess.TimeoutExpired(self._streams[0], timeout)
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:  # until it is polled its number belongs to nobody else
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def has_spoken(self):
        """True once it has said something on its first stream."""
        out = pathlib.Path(self._streams[0])
        return out.exists() and out.stat().st_size > 0

    def communicate(self, timeout=None):
        """Waits for its end; returns what it said on both streams."""
        self.wait(timeout)
        return tuple(pathlib.Path(stream).read_text() for stream in self._streams)


class Forks:
    """The process that forks, started when the first program is."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self._count, self._process = folder, 0, None

    def start(self, program, *words, devices: int, path=(), modules=(), out="", err="") -> Forked:
        """Starts a Python file with arguments on so many CPU devices, with further folders to import from.

        What it says goes to the end of the files `out` and `err`, or of new ones. The modules are imported before the
        process is forked, once for all: those that take long and that few programs need.
        """
        self._count += 1
        said = self.folder / f"{self._count}-{pathlib.Path(program).stem}"
        streams = [out or f"{said}.out", err or f"{said}.err"]
        told = {"program": str(program), "words": [str(word) for word in words], "streams": streams}
        told |= {"path": [str(folder) for folder in path], "devices": devices}
        told["modules"] = list(modules)
        return Forked(self, self.ask(told), streams)

    def start_code(self, code: str, *words, devices: int = 1, path: tuple = ()) -> Forked:
        """Starts a program that is given as text."""
        file = self.folder / f"program{self._count}.py"
        file.write_text(textwrap.dedent(code))
        return self.start(file, *words, devices=devices, path=path)

    def ask(self, told):
        if self._process is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a process with threads had better not fork
            self._process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process that forks: what it and its programs cost is then part of what this process has cost."""
        if self._process is not None:
            self._process.communicate()
            assert self._process.returncode == 0
            self._process = None


def _answer(line):
    """The exit code of a process that is asked for, or None while it runs."""
    pid, status = os.waitpid(json.loads(line)["poll"], os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _serve():
    """Forks when it is told to; returns in the process that was forked, with what it has to do."""
    while line := sys.stdin.readline():
        told = json.loads(line)
        if new := [name for name in told.pop("modules", ()) if name not in sys.modules]:
            for name in new:
                importlib.import_module(name)
            gc.freeze()
        if "poll" in told:
            answer = _answer(line)
        elif (answer := os.fork()) == 0:
            return told
        print(json.dumps(answer), flush=True)
    return None


def _become(program, words, streams, path, devices):
    """Runs a program as if this process had been started with it."""
    import jax

    for number, name in enumerate(streams, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    jax.config.update("jax_num_cpu_devices", devices)
    sys.argv = [program, *words]
    sys.path[:1] = [os.path.dirname(program), *path]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    for module in pkgutil.walk_packages(jaxkd.__path__, "jaxkd."):
        importlib.import_module(module.name)
    for name in (
        "flax.nnx",
        "grain",
        "optax.contrib",
        "tensorboardX",
        "tyro",
    ):  # imported when needed
        importlib.import_module(name)
    gc.set_threshold(100_000, 50, 50)  # as the tests themselves
    gc.freeze()  # else each program looks for garbage among all that is imported here, and copies its pages
    todo = _serve()
    if todo is not None:
        _become(**todo)
