"""Declarations of losses: what holds of a loss, on which inputs, and how its row in the table of losses reads.

A declaration stands right above the function, and every table and test reads it from there:

@declare(lambda draw: (draw.logits(), draw.logits()), DIVERGENCE)
def my_loss(student_logits, teacher_logits, *, temperature=1.0): ...

assert (report := declaration_of(my_loss).check()), str(report)
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeAlias, TypeVar

from jaxkd.testing.check import check_loss
from jaxkd.testing.draw import Draw
from jaxkd.testing.outcome import Report
from jaxkd.testing.properties import LABELS_OUTSIDE, SCALAR, Property

Loss = TypeVar("Loss", bound=Callable[..., Any])
Inputs: TypeAlias = Callable[[Draw], Sequence[Any] | Mapping[str, Any]]
"""Draw -> positional arguments, or a mapping of keyword ones."""

_REFERENCE = re.compile(
    r'^[^"]+, "(?P<title>.+?)"(?: \([^)]*\))?, (?P<venue>[^,]*\d{4}[^,]*), (?P<link>https?://[^\s;,]+)'
)
_ATTRIBUTE = "__declaration__"


class Reference(NamedTuple):
    """Source of a loss.

    Attributes:
      title: Title of the paper, or the docstring's summary where there is no paper.
      venue: Venue and year.
      link: Address of the paper, or of the code where there is no paper.
    """

    title: str
    venue: str
    link: str


class Example(NamedTuple):
    """Example arguments of a loss.

    Attributes:
      call: The loss, which takes all arguments by name.
      inputs: Name -> array [B, ...], or list of arrays for an argument that takes several layers; the student's first.
      fixed: Name -> what has no batch axis: arrays (heads, memories, margins) and hyper-parameters.
    """

    call: Callable[..., Any]
    inputs: Mapping[str, Any]
    fixed: Mapping[str, Any]


@dataclass(frozen=True)
class Declaration:
    """Declaration of one loss, made by `declare`, which explains the fields.

    Attributes:
      loss: The function.
      inputs: Draw -> the arguments that have a batch axis.
      properties: Properties that hold of the loss.
      fixed: Draw -> the other arguments, by name.
      kinds: Kinds of inputs.
      own: Parameters or memories that the method owns.
      needs: Data that a classifier of images does not have.
      example_of: (function) -> the loss that is checked: the function itself, or one that it makes.
    """

    loss: Callable[..., Any]
    inputs: Inputs
    properties: Sequence[Property]
    fixed: Callable[[Draw], Mapping[str, Any]]
    kinds: Mapping[str, str]
    own: str
    needs: str
    example_of: Callable[[Any], Callable[..., Any]]

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.loss.__name__

    @property
    def kind(self) -> str:
        """Kind of the result: "per example", or "couples the batch" for a scalar."""
        return "couples the batch" if SCALAR in self.properties else "per example"

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of the arguments that can be given by position."""
        return _takes(self.loss)

    @property
    def reference(self) -> Reference:
        """Title, venue and link, read from the docstring's section `Reference`.

        Raises:
          ValueError: If the docstring has no such section, or it cannot be read.
        """
        doc = inspect.getdoc(self.loss) or ""
        summary, text = doc.partition("\n")[0].rstrip("."), " ".join(doc.partition("\nReference:\n")[2].split())
        if text.startswith("No paper"):
            year, link = (re.search(pattern, text) for pattern in (r"\b\d{4}\b", r"https?://[^\s;,]+"))
            return Reference(summary, year[0] if year else "", link[0] if link else "")
        if found := _REFERENCE.match(text):
            return Reference(found["title"], found["venue"], found["link"])
        raise ValueError(
            f"the docstring of {self.name} has the reference {text!r}: end it with 'Reference:' and "
            "'Authors, \"Title\", Venue Year, link', or 'No paper' and where the loss is from."
        )

    def example(self, draw: Draw) -> Example:
        """Example arguments, by name.

        Args:
          draw: Draws them, at its sizes.

        Returns:
          The loss that takes them, the arguments with a batch axis, and the others.
        """
        loss = self.example_of(self.loss)
        inputs = self.inputs(draw)
        if not isinstance(inputs, Mapping):
            inputs = dict(zip(_takes(loss), inputs, strict=False))
        return Example(loss, inputs, self.fixed(draw))

    def check(self, *, leave_out: Sequence[Property] = ()) -> Report:
        """Checks every declared property on small example inputs, and the rule of labels of a loss that takes some.

        Args:
          leave_out: Declared properties that are not checked.

        Returns:
          The report, true if nothing failed.
        """
        loss, inputs, fixed = self.example(Draw())
        integers = {n for n, a in inputs.items() if getattr(getattr(a, "dtype", None), "kind", "") == "i"}
        of_labels = any(self.kinds.get(name, "labels") == "labels" for name in integers)
        declared = (*self.properties, *([LABELS_OUTSIDE] if of_labels else []))
        properties = [one for one in declared if one not in leave_out]
        bound = functools.partial(loss, **fixed) if fixed else loss
        return check_loss(bound, inputs, properties=properties, kinds=self.kinds)


def declare(
    inputs: Inputs,
    properties: Sequence[Property],
    *,
    fixed: Callable[[Draw], Mapping[str, Any]] = lambda draw: {},
    kinds: Mapping[str, str] = MappingProxyType({}),
    own: str = "none",
    needs: str = "",
    example_of: Callable[[Any], Callable[..., Any]] = lambda loss: loss,
) -> Callable[[Loss], Loss]:
    """Attaches a declaration to a loss; the function itself stays as it is.

    Args:
      inputs: Draw -> the arguments that have a batch axis: positional ones, or a mapping of keyword ones; the student's
        side first, the teacher's second. A list of arrays is an argument that takes several layers.
      properties: Properties that hold of the loss: `LOGITS`, `FEATURES`, `COUPLED`, `DIVERGENCE`, and single ones.
      fixed: Draw -> the other arguments by name: arrays without a batch axis (heads, memories, margins), and
        hyper-parameters where their defaults do not fit.
      kinds: Kinds of inputs, as in `check_loss`.
      own: Parameters or memories that the method owns, and the term that makes them.
      needs: Data that the loss needs and a classifier of images does not have ("texts", "boxes"); "" if none.
      example_of: For a function that makes losses: (function) -> a loss that it makes, which is drawn for and checked.

    Returns:
      A decorator that returns the function that it is given.
    """

    def attach(loss: Loss) -> Loss:
        vars(loss)[_ATTRIBUTE] = Declaration(loss, inputs, properties, fixed, kinds, own, needs, example_of)
        return loss

    return attach


def declaration_of(loss: Callable[..., Any]) -> Declaration:
    """The declaration that stands above a loss.

    Args:
      loss: A function that `declare` was applied to.

    Returns:
      Its declaration.

    Raises:
      ValueError: If it has none of its own.
    """
    found = vars(loss).get(_ATTRIBUTE)
    if found is None or found.loss is not loss:  # a wrapper carries that of the function in it
        name = getattr(loss, "__name__", type(loss).__name__)
        raise ValueError(f"{name} has no declaration: put @declare(inputs, properties) above the function.")
    return found


def declarations(losses: ModuleType) -> list[Declaration]:
    """The declarations of all losses that a module lists.

    Args:
      losses: A module whose `__all__` names losses, such as `jaxkd.losses`.

    Returns:
      One for each name, in that order.

    Raises:
      ValueError: If one of them has no declaration.
    """
    return [declaration_of(getattr(losses, name)) for name in losses.__all__]


def _takes(loss: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments that can be given by position."""
    parameters = inspect.signature(loss, follow_wrapped=False).parameters.values()
    return tuple(one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD)
