"""Flags of the command line: how a field declares one, and those that every experiment has for steps and devices."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

import jax
import optax

from jaxkd import models
from jaxkd.experiment.domains import COUNT, DECAY, POSITIVE, SECONDS, WHOLE, Domain, check_domains, flag_name
from jaxkd.parallel import DATA as DATA_AXIS
from jaxkd.parallel import MODEL as MODEL_AXIS
from jaxkd.parallel import make_mesh, processes
from jaxkd.parallel.compile import Plan, with_jit, with_pmap
from jaxkd.types import Model, Variables

Group: TypeAlias = Literal["data", "networks", "training", "devices", "run"]
"""The panel of `--help` that a flag stands in."""
DATA: Group = "data"
NETWORKS: Group = "networks"
TRAINING: Group = "training"
DEVICES: Group = "devices"
RUN: Group = "run"
GROUPS: tuple[Group, ...] = (DATA, NETWORKS, TRAINING, DEVICES, RUN)
"""All panels, in the order in which `--help` shows them."""


def flag(default: Any, help: str, group: Group, domain: Domain | None = None) -> Any:
    """A field of a configuration, as `steps: int = flag(100, "updates of the student", TRAINING, domains.COUNT)`.

    A subclass may give the field another default (`steps: int = 200`) and keeps help, group and domain.

    Args:
      default: The field's default.
      help: One plain phrase for someone who has not seen the code, with the unit; `--help` adds the domain.
      group: The panel of `--help`.
      domain: Values that the field may have, or each of its values if it is a tuple; checked before anything starts.

    Returns:
      A dataclass field.
    """
    return dataclasses.field(default=default, metadata={"help": help, "group": group, "domain": domain})


@dataclasses.dataclass(frozen=True)
class Devices:
    """Flags of devices and processes, no part of the configuration: a run may go on with others than it began with."""

    parallel: Literal["jit", "pmap"] = flag("jit", "function of JAX that spreads a step over the devices", DEVICES)
    mesh: str | None = flag(
        None, 'axes of the mesh and their sizes, such as data=4,model=2, where "model" splits the parameters', DEVICES
    )
    coordinator: str | None = flag(
        None, "address of the first process, HOST:PORT; or auto under Slurm, MPI, Kubernetes or on TPU pods", DEVICES
    )
    num_processes: int | None = flag(None, "number of processes, unless the coordinator is auto", DEVICES, COUNT)
    process_id: int | None = flag(None, "number of this process, unless the coordinator is auto", DEVICES, WHOLE)
    peer_timeout: float = flag(60.0, "seconds of silence after which another process counts as lost", DEVICES, SECONDS)

    def check(self) -> None:
        """Checks the values before anything is opened or started.

        Raises:
          ValueError: If a value is outside its domain, or flags contradict each other.
        """
        check_domains(self)
        given = [name for name in ("num_processes", "process_id") if getattr(self, name) is not None]
        if self.coordinator is None and given:
            raise ValueError(
                f"{flag_name(given[0])} is given but no --coordinator: give HOST:PORT of process 0, or auto."
            )
        if self.num_processes is not None and self.process_id is not None and self.process_id >= self.num_processes:
            raise ValueError(
                f"--process-id is {self.process_id} but --num-processes {self.num_processes}: give a number from 0 to "
                f"{self.num_processes - 1}."
            )

    def start(self) -> None:
        """Joins the other processes, if there are any; call it before anything touches a device.

        Raises:
          ValueError: As `check` and `processes.start` say.
        """
        self.check()
        processes.start(self.coordinator, self.num_processes, self.process_id, peer_timeout=self.peer_timeout)

    def plan(self) -> Plan:
        """Makes the plan that spreads steps over the devices there are.

        Returns:
          The plan.

        Raises:
          ValueError: If --mesh has an unknown axis or sizes that do not multiply to the number of devices, or if it
            would split parameters under --parallel pmap.
        """
        sizes = {} if self.mesh is None else _sizes(self.mesh, jax.device_count())
        if self.parallel == "pmap":
            if sizes.get(MODEL_AXIS, 1) > 1:
                raise ValueError(
                    f"pmap keeps params whole on every device, so has no axis {MODEL_AXIS!r}: use jit for it."
                )
            return with_pmap()
        return with_jit(make_mesh(model=sizes.get(MODEL_AXIS, 1)))


def _sizes(text: str, count: int) -> dict[str, int]:
    """Axis -> size, all given sizes together with the rest along "data" being all devices."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in (DATA_AXIS, MODEL_AXIS) or name in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"--mesh is {text!r}, but must be like {DATA_AXIS}=4,{MODEL_AXIS}=2: name each axis once, with a size."
            )
        sizes[name] = int(size)
    product = sizes.get(DATA_AXIS, 1) * sizes.get(MODEL_AXIS, 1)
    if product != count if DATA_AXIS in sizes else count % product:
        wanted = " times ".join(map(str, sizes.values()))
        raise ValueError(
            f"--mesh {text} is of {wanted} = {product} devices but there are {count}: choose sizes whose product is "
            f"{count}."
        )
    return sizes


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Options of the train step that every experiment can have; none of them changes the objective."""

    precision: Literal["tf32", "float32", "bfloat16"] = flag(
        "tf32",
        "format of the networks' products and convolutions: tf32 (float32 where the device has no TF32), float32, or "
        "bfloat16, which their activations have too; parameters, statistics and losses stay in float32",
        TRAINING,
    )
    teacher_weights: Literal["float32", "bfloat16", "int8"] = flag(
        "float32", "format in which the teacher's weights are kept in memory", TRAINING
    )
    micro_batches: int = flag(
        1, "parts of a batch that are computed one after the other, to save memory", TRAINING, COUNT
    )
    clip: float | None = flag(None, "largest global norm of the gradient; no clipping if absent", TRAINING, POSITIVE)
    ema_decay: float | None = flag(
        None, "decay of a moving average of the student, which is evaluated as well; none if absent", TRAINING, DECAY
    )
    skip_nonfinite: bool = flag(
        False, "skip and count updates that hold a NaN or an infinity; stop after 100 in a row", TRAINING
    )
    at_once: int = flag(1, "updates in one call of the compiled program", DEVICES, COUNT)
    resident: bool = flag(False, "keep the training data in the devices' memory", DEVICES)
    form: Literal["vmap", "map", "unroll", "fastest"] = flag(
        "vmap", "way to compute several students in one program; fastest measures the three others", DEVICES
    )

    def cast_student(self, model: Model) -> Model:
        """The model in the precision of its activations.

        Args:
          model: The model.

        Returns:
          A model with the same variables.
        """
        return models.in_dtype(model) if self.precision == "bfloat16" else model

    def products(self) -> AbstractContextManager[None]:
        """Context in which the networks' products and convolutions of float32 are traced in the precision.

        JAX's default on GPUs is TF32, and on TPUs bfloat16, whatever the arrays' format. Losses ask for float32
        themselves.

        Returns:
          A context manager.
        """
        names = {"tf32": "tensorfloat32", "float32": "float32", "bfloat16": "default"}
        return jax.default_matmul_precision(names[self.precision])

    def cast_teacher(self, model: Model | None, variables: Variables) -> tuple[Model, Variables]:
        """The teacher in the precision of its activations, and its variables in the format of its weights.

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
        computed = self.cast_student(model)
        if self.teacher_weights == "int8":
            return models.from_int8(computed), models.to_int8(variables)
        return computed, variables if self.teacher_weights == "float32" else models.cast(variables)

    def clipped(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer, after clipping of the gradient if `clip` is given.

        Args:
          optimizer: The optax transformation.

        Returns:
          An optax transformation.
        """
        return optimizer if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), optimizer)
