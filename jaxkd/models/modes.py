"""Flags that put modules into training or evaluation mode: arguments of their calls, and attributes, found by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from flax import nnx

# Names that libraries give the flag that separates training from evaluation, in small letters without underscores ->
# its value in training.
_NAMES = {
    **dict.fromkeys(("train", "training", "istrain", "istraining", "trainmode", "trainingmode"), True),
    **dict.fromkeys(("usedropout", "enabledropout", "updatestats", "updatebatchstats"), True),
    **dict.fromkeys(("deterministic", "isdeterministic", "userunningaverage", "userunningstats"), False),
    **dict.fromkeys(("eval", "iseval", "evalmode", "evaluate", "evaluation", "isevaluation"), False),
    **dict.fromkeys(("inference", "isinference", "inferencemode", "test", "istest", "testing", "testmode"), False),
}


class Mode(NamedTuple):
    """Flags of a module in one mode.

    Attributes:
      call: Name -> value of arguments of its call.
      attributes: Name -> value of attributes that the user has named.
    """

    call: Mapping[str, Any]
    attributes: Mapping[str, Any]


class Modes(NamedTuple):
    """Flags of a module in both modes.

    Attributes:
      train: In training.
      evaluate: In evaluation.
      stated: Whether the user has named them; else they were found by their names.
    """

    train: Mode
    evaluate: Mode
    stated: bool


def value_of(name: str, train: bool) -> bool | None:
    """Value of a flag in a mode.

    Args:
      name: Name of an argument or attribute.
      train: Whether in training.

    Returns:
      The value, or None if no flag is known by that name.
    """
    in_training = _NAMES.get(name.lower().replace("_", ""))
    return None if in_training is None else in_training == train


def find(module: Any, inputs: int, training: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None) -> Modes:
    """Finds the flags of a Linen or NNX module.

    Args:
      module: The module.
      inputs: Number of positional arguments, which are no flags.
      training: Name -> value of flags in training, if the user has named them.
      evaluation: The same in evaluation; the opposite of those in training if None, and the other way round.

    Returns:
      The flags.

    Raises:
      ValueError: If a named flag is no argument of the call and no attribute, or its opposite is unknown.
    """
    arguments = arguments_of(type(module))
    if training is None and evaluation is None:
        free = [p for i, p in enumerate(arguments.values()) if i >= inputs or p.kind == p.KEYWORD_ONLY]
        names = [p.name for p in free if value_of(p.name, True) is not None and _says_yes_or_no(p.default)]
        names = [name for name in names if not _made_with(module, name)]
        found = [Mode({n: value_of(n, train) for n in names}, {}) for train in (True, False)]
        return Modes(found[0], found[1], stated=False)
    attributes = attributes_of(module)
    given = (
        _opposite(evaluation) if training is None else training,
        _opposite(training) if evaluation is None else evaluation,
    )
    call = inspect.signature(type(module).__call__).parameters.values()
    takes_any = any(p.kind == p.VAR_KEYWORD for p in call)
    for name in {**given[0], **given[1]}:
        if name not in arguments and name not in attributes and not takes_any:
            raise ValueError(
                f"{type(module).__name__} has no flag {name!r}: its call takes {', '.join(arguments) or 'nothing'}, "
                f"and its attributes are {', '.join(attributes) or 'none'}; name one of them."
            )
    modes = [
        Mode(
            {n: x for n, x in flags.items() if n in arguments or n not in attributes},
            {n: x for n, x in flags.items() if n not in arguments and n in attributes},
        )
        for flags in given
    ]
    return Modes(modes[0], modes[1], stated=True)


def _opposite(flags: Mapping[str, Any] | None) -> dict[str, bool]:
    """Flags of the other mode."""
    for name, x in (flags or {}).items():
        if not isinstance(x, bool):
            raise ValueError(f"the flag {name!r} is {x!r} in one mode: give its value in the other mode as well.")
    return {name: not x for name, x in (flags or {}).items()}


def arguments_of(kind: Any) -> Mapping[str, inspect.Parameter]:
    """Arguments of a module's call that can be given by name, without `self`.

    Args:
      kind: The module's class.

    Returns:
      Name -> parameter.
    """
    return _arguments(kind)


@functools.lru_cache(maxsize=512)
def _arguments(kind: Any) -> Mapping[str, inspect.Parameter]:
    parameters = list(inspect.signature(kind.__call__).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p for p in parameters if p.kind in named}


def attributes_of(module: Any) -> dict[str, Any]:
    """Attributes that a module was made with.

    Args:
      module: A Linen or NNX module.

    Returns:
      Name -> value.
    """
    if isinstance(module, nn.Module):
        return {n: getattr(module, n) for n in type(module).__dataclass_fields__ if n not in ("parent", "name")}
    return {n: x for n, x in vars(module).items() if not n.startswith("_pytree__")}


def _says_yes_or_no(value: Any) -> bool:
    """True for values that a flag may have where nothing else is said."""
    return value is inspect.Parameter.empty or value is None or isinstance(value, bool)


def _made_with(module: Any, name: str) -> bool:
    """True if a flag was given when the module was made, so that its call takes none, as `flax.linen.merge_param`."""
    argument = arguments_of(type(module)).get(name)
    return argument is not None and argument.default is None and isinstance(getattr(module, name, None), bool)


def with_attributes(module: nn.Module, modes: Modes, train: bool) -> nn.Module:
    """A Linen module in which the flags among the attributes are set, also of modules that are attributes of it.

    Flax's own layers keep what they were made with, so that a batch norm may be frozen.

    Args:
      module: The module.
      modes: Its flags.
      train: The mode.

    Returns:
      The module, itself if it has no such flag.
    """
    if modes.stated:
        attributes = (modes.train if train else modes.evaluate).attributes
        return module.clone(**attributes) if attributes else module
    return _set_in(module, train)


def _set_in(x: Any, train: bool) -> Any:
    """What `with_attributes` gives for an attribute: modules, also in lists, tuples and dicts."""
    if isinstance(x, dict):
        found: Any = {k: _set_in(v, train) for k, v in x.items()}
        return found if any(found[k] is not x[k] for k in x) else x
    if type(x) in (list, tuple):
        found = type(x)(_set_in(v, train) for v in x)
        return found if any(a is not b for a, b in zip(found, x, strict=True)) else x
    if not isinstance(x, nn.Module):
        return x
    own, calls = not type(x).__module__.startswith("flax."), arguments_of(type(x))
    changes: dict[str, Any] = {}
    for name, value in attributes_of(x).items():
        flag = value_of(name, train) if own and (name not in calls or _made_with(x, name)) else None
        flag = flag if isinstance(value, bool) else None
        new = _set_in(value, train) if flag is None else flag
        if flag is not None or new is not value:
            changes[name] = new
    return x.clone(**changes) if changes else x


class Watch:
    """Interceptor of Linen calls that sets flags which a module leaves open, and sees whether dropout is on.

    Args:
      train: The mode.

    Attributes:
      dropped: Whether any layer of dropout was on.
      kept: Name of the first layer of dropout, empty without one.
    """

    def __init__(self, train: bool) -> None:
        self.train, self.dropped, self.kept = train, False, ""

    def __call__(
        self, call: Callable[..., Any], args: Any, kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        """Calls the submodule, with the flags that nobody has set."""
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        for i, (name, argument) in enumerate(arguments_of(type(module)).items()):
            if i < len(args) or kwargs.get(name) is not None or value_of(name, self.train) is None:
                continue
            required = argument.default is inspect.Parameter.empty
            if (required and name not in kwargs) or (argument.default is None and getattr(module, name, True) is None):
                kwargs = {**kwargs, name: value_of(name, self.train)}
        if isinstance(module, nn.Dropout) and module.rate > 0:
            set_at_call = [*args[1:2], kwargs.get("deterministic"), module.deterministic]
            off = next((x for x in set_at_call if x is not None), False)
            self.dropped |= not (isinstance(off, bool) and off)
            self.kept = self.kept or "/".join(module.path)
        return call(*args, **kwargs)


def set_modes(module: nnx.Module, modes: Modes, train: bool) -> None:
    """Puts an NNX module and all modules in it into a mode: by `train()` and `eval()`, and by attributes known by name.

    Args:
      module: The module, which is changed.
      modes: Its flags.
      train: The mode.
    """
    change = getattr(module, "train" if train else "eval", None)
    if callable(change):
        change()
    if modes.stated:
        for name, value in (modes.train if train else modes.evaluate).attributes.items():
            setattr(module, name, value)
        return
    for _, node in nnx.iter_modules(module):
        for name, value in list(attributes_of(node).items()):
            if isinstance(value, bool) and (flag := value_of(name, train)) is not None:
                setattr(node, name, flag)
