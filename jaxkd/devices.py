"""The flags that say where an experiment runs: on which devices, how its steps are spread, beside which processes."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import Literal

import jax

from jaxkd import processes
from jaxkd.parallel import DATA, MODEL, Plan, make_mesh, with_jit, with_pmap


@dataclasses.dataclass(frozen=True)
class Devices:
    """No part of the configuration: a run may go on with other devices than it began with."""

    parallel: Literal["jit", "pmap"] = "jit"  # how steps are spread over the devices
    mesh: str | None = (
        None  # axes and sizes such as data=4,model=2 (params are split over "model"); all data by default
    )
    coordinator: str | None = None  # with several processes: HOST:PORT of the first, or auto (Slurm, MPI, K8s, TPU)
    num_processes: int | None = None  # how many there are, unless the coordinator is auto
    process_id: int | None = None  # which one this is, from 0, unless the coordinator is auto
    peer_timeout: float = 60.0  # seconds without a sign of life after which another process counts as lost

    def start(self) -> None:
        """Joins the other processes, if there are any; call it before anything touches a device.

        Raises:
          ValueError: As `processes.start` says.
        """
        processes.start(self.coordinator, self.num_processes, self.process_id, peer_timeout=self.peer_timeout)

    def plan(self) -> Plan:
        """How steps are spread over the devices there are.

        Returns:
          The plan.

        Raises:
          ValueError: If the mesh has axes that there are not, does not have as many devices as there are, or cannot be
            served by `pmap`.
        """
        count = jax.device_count()
        sizes = {} if self.mesh is None else _sizes(self.mesh, count)
        if self.parallel == "pmap":
            if sizes.get(MODEL, 1) > 1:
                raise ValueError(f"pmap keeps params whole on every device, so has no axis {MODEL!r}: use jit for it.")
            return with_pmap()
        return with_jit(make_mesh(model=sizes.get(MODEL, 1)))


def _sizes(text: str, count: int) -> dict[str, int]:
    """Axis -> size, all given sizes together with the rest along "data" being all devices."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in (DATA, MODEL) or name in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"the mesh is {text!r}, but must be like {DATA}=4,{MODEL}=2: name each axis once, with a size."
            )
        sizes[name] = int(size)
    product = sizes.get(DATA, 1) * sizes.get(MODEL, 1)
    if product != count if DATA in sizes else count % product:
        wanted = " times ".join(map(str, sizes.values()))
        raise ValueError(
            f"the mesh {text} is of {wanted} = {product} devices but there are {count}: choose sizes whose product is "
            f"{count}."
        )
    return sizes


def keep_programs() -> None:
    """Keeps what JAX compiles for later starts, in the user's cache folder, apart for each machine.

    The environment variable `JAX_COMPILATION_CACHE_DIR` names another folder, or, where it is empty, none.
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
