"""The flags that say where an experiment runs: on which devices, how its steps are spread, beside which processes."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import optax

from jaxkd import models
from jaxkd.parallel import DATA, MODEL, make_mesh, processes
from jaxkd.parallel.compile import Plan, with_jit, with_pmap
from jaxkd.types import Model, Variables


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


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How steps are made, as flags that every experiment can have: none of them changes what is trained for."""

    precision: Literal["float32", "bfloat16"] = "float32"  # of what is computed; params and losses stay in float32
    teacher_weights: Literal["float32", "bfloat16", "int8"] = "float32"  # how the teacher is held
    micro_batches: int = 1  # parts of a batch that pass through the networks one after the other
    clip: float | None = None  # longest gradient
    ema_decay: float | None = None  # of a moving average of the student, measured beside it
    skip_nonfinite: bool = False  # leave updates with a NaN or an infinity out and count them, instead of stopping
    at_once: int = 1  # steps in one dispatch
    resident: bool = False  # keep the training data on the devices
    form: Literal["vmap", "map", "unroll", "fastest"] = "vmap"  # how a stack of students is computed; fastest measures

    def student(self, model: Model) -> Model:
        """The model as it is computed.

        Args:
          model: The model.

        Returns:
          A model with the same variables.
        """
        return model if self.precision == "float32" else models.in_dtype(model)

    def teacher(self, model: Model | None, variables: Variables) -> tuple[Model, Variables]:
        """A teacher as it is computed and held.

        Args:
          model: The model, if there is one.
          variables: Its variables.

        Returns:
          Model and variables.
        """
        if model is None:
            return models.no_teacher(), variables
        if not jax.tree.leaves(variables.params):  # its outputs are cached
            return model, variables
        computed = self.student(model)
        if self.teacher_weights == "int8":
            return models.from_int8(computed), models.to_int8(variables)
        return computed, variables if self.teacher_weights == "float32" else models.cast(variables)

    def optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """An optimizer of clipped gradients.

        Args:
          optimizer: The optax transformation.

        Returns:
          An optax transformation.
        """
        return optimizer if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), optimizer)
