"""The start of an experiment: command line, run directory, logs, devices."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxkd import parallel
from jaxkd.experiment.cli import main, parse_all
from jaxkd.experiment.config import Config, flag_name
from jaxkd.experiment.flags import Devices
from jaxkd.experiment.waiting import watching_input
from jaxkd.files import to_json
from jaxkd.parallel import processes
from jaxkd.runs.directory import Run, open_run, reserved
from jaxkd.runs.logger import Logger


def launch(
    config_class: type[Config],
    procedure: Callable[[Any, Run, Logger, parallel.Plan], None],
    *,
    description: str,
    smoke: Mapping[str, Any],
    ignore: Sequence[str] = ("root", "data_dir", "wandb"),
) -> None:
    """Runs an experiment: reads and checks the command line, opens the run's folder and logs, calls the procedure.

    A run that is finished already says so and ends with code 0; a mistake of the user is one line on stderr.

    Args:
      config_class: The experiment's configuration.
      procedure: The experiment, (config, run, logger, plan) -> None; it ends with `conclude`.
      description: Shown by `--help`.
      smoke: Field -> the default that `--smoke` puts in place of the usual one.
      ignore: Fields that may change between two starts of one run.

    Raises:
      SystemExit: As `jaxkd.experiment.cli.main` says.
    """

    @functools.wraps(procedure)
    def start() -> None:
        config, devices = parse_all([config_class, Devices], description=description, smoke=smoke)
        config.check()
        keep_programs()
        with reserved(config.root, config.name) if devices.coordinator is None else contextlib.nullcontext():
            devices.start()
            processes.check_same(_told(config, devices))
            plan = devices.plan()
            with open_run(config, root=config.root, ignore=ignore, settled=False) as run:
                if run.finished:
                    if processes.is_first():
                        print(run.notice)
                    return
                with Logger(run.path, wandb=config.wandb, config=config) as logger, config.products(), watching_input():
                    procedure(config, run, logger, plan)

    processes.run(lambda: main(start))


def _told(config: Config, devices: Devices) -> dict[str, Any]:
    """Flags that all processes of a run must be given alike, and their values."""
    fields = {name: value for name, value in vars(config).items() if name != "data_dir"}  # a disk of their own
    fields |= {"parallel": devices.parallel, "mesh": devices.mesh}
    return {flag_name(name): value for name, value in to_json(fields, non_finite=str).items()}


def keep_programs() -> None:
    """Keeps compiled programs for later starts, in a folder for each machine inside the user's cache folder.

    The environment variable `JAX_COMPILATION_CACHE_DIR` names another folder; if it is empty, nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "jaxkd" / "xla" / (platform.node() or "here")  # a home may be shared by unlike processors
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # nothing is lost but time
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
