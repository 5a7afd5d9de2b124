"""Low-rank adapters (LoRA) on the kernels of any network, which is itself not trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxkd.keys import fold_name, typed_key
from jaxkd.models.frozen import FROZEN, set_apart, thaw
from jaxkd.models.precision import Int8, from_integers
from jaxkd.patterns import matches
from jaxkd.types import TEACHER, Batch, Model, Outputs, PyTree, Variables, as_variables

LORA = "lora"
"""Entry of the params that holds the adapters, and of the state that holds their scale."""

_HEADS = re.compile(r"(^|/)(query|key|value)/kernel$")
"""Kernels [D, heads, D / heads] of attention, where Flax has three axes: two of them belong to the output."""


def lora(
    model: Model,
    rules: str | Sequence[str],
    rank: int,
    *,
    alpha: float | None = None,
    trained: str | None = None,
    shared: bool = False,
) -> Model:
    """Model whose kernels are those of a base, which is not trained, and of trained adapters of low rank.

    W' = W + (alpha / r) A B,  A [..., r] normal with the variance 1 / fan-in,  B [r, ...] = 0 at first

    This is the paper's W + (alpha / r) B A with kernels as Flax has them, inputs first. A convolution's A is a
    convolution of the same size with r output channels, and B one of 1 x 1. The first outputs are the base's. The
    optimizer holds moments of the adapters alone. Batch norms move their running statistics as they do in the model.

    `start = models.add_lora(key, pretrained, "attention/.*kernel", 4)` begins with a trained base, and
    `models.merge_lora(variables)` gives a network without adapters back.

    Args:
      model: Any model whose params are nested dicts. Its base may be of `to_int8` or `cast`: it stays as it is, and
        becomes float32 where it is used.
      rules: Regular expressions, searched in paths such as "encoder/block0/mlp1/kernel": of these params, all
        kernels (two axes or more, no bias) get an adapter.
      rank: r, from 1 to the smaller side of each of these kernels.
      alpha: The scale's numerator; r if None, so that the scale is 1.
      trained: Regular expression of params that are trained as they are, such as "^head" for a last layer that begins
        anew; none if None.
      shared: Whether the base is the teacher of the step, and not part of the state: many students, such as those of
        several seeds, then have one base, and no checkpoint holds it. Give the model itself to the step as its teacher;
        to evaluate, merge first.

    Returns:
      A model whose params are the adapters, under `LORA`, and what else is trained; the base stands in its state, under
      `FROZEN`.

    Raises:
      ValueError: If the rank or alpha is not positive; when initialised, as `add_lora` says; by the model, if it is
        given variables without adapters.

    Reference:
      Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large Language Models", ICLR
      2022, https://arxiv.org/abs/2106.09685; for a base of few bits: Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA:
      Efficient Finetuning of Quantized LLMs", NeurIPS 2023, https://arxiv.org/abs/2305.14314
    """
    _check_options(rank, alpha)

    def init(key: jax.Array, batch: Batch) -> Variables:
        own = add_lora(key, model.init(key, batch), rules, rank, alpha=alpha, trained=trained)
        return without_base(own) if shared else own

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables = as_variables(variables)
        base = batch.get(TEACHER) if shared else None
        merged = merge_lora(variables, base)
        batch = {name: x for name, x in batch.items() if name != TEACHER} if shared else batch
        outputs, state = model.apply(merged, batch, key, train)
        return outputs, {**state, **{name: variables.state[name] for name in _OURS if name in variables.state}}

    return Model(init, apply, reads_teacher=shared)


def add_lora(
    key: jax.Array,
    variables: Variables,
    rules: str | Sequence[str],
    rank: int,
    *,
    alpha: float | None = None,
    trained: str | None = None,
) -> Variables:
    """Variables of `lora(model, rules, rank)` from those of a trained model: the way there from `merge_lora`.

    Args:
      key: Typed PRNG key [], for A.
      variables: The base's variables, params in nested dicts.
      rules: As for `lora`.
      rank: As for `lora`.
      alpha: As for `lora`.
      trained: As for `lora`.

    Returns:
      The same arrays and those of the adapters.

    Raises:
      ValueError: If a rule is found in no path of a kernel, `trained` in no path or in those of all params, or the rank
        is larger than a side of a kernel; if the variables have adapters already.
    """
    _check_options(rank, alpha)
    base = thaw(variables)
    if LORA in base.state:
        raise ValueError("the variables have adapters already: merge them first, by models.merge_lora(variables).")
    flat = traverse_util.flatten_dict(base.params, sep="/")
    as_it_is = _found("trained", [trained] if trained is not None else [], flat, flat)
    kernels = {path: x for path, x in flat.items() if _is_kernel(path, x) and path not in as_it_is}
    adapted = _found("rules", [rules] if isinstance(rules, str) else list(rules), kernels, flat)
    if not adapted:
        raise ValueError("there is no rule: give regular expressions of the paths of kernels that get adapters.")
    adapters = {path: _adapter(typed_key(key), path, _shape(kernels[path]), rank) for path in sorted(adapted)}
    scale = jnp.asarray((rank if alpha is None else alpha) / rank, jnp.float32)
    params, state = set_apart(base, flat.keys() - as_it_is)
    params = {**params, LORA: traverse_util.unflatten_dict(adapters, sep="/")}
    return Variables(params, {**state, LORA: {"scale": scale}})


def merge_lora(variables: Variables, base: Variables | None = None) -> Variables:
    """Variables of a model from those of `lora(model, ...)`: W' in place of W, and no adapters.

    The merged network computes with the same numbers as the adapted one.

    Args:
      variables: Those of a model with adapters.
      base: The base's, for a model made with `shared`; None where the state has them.

    Returns:
      The model's variables, with the running statistics of the adapted model. Weights of 8 bits are float32.

    Raises:
      ValueError: If there are no adapters, or no base.
    """
    variables = as_variables(variables)
    if LORA not in variables.state:
        raise ValueError(
            "the variables have no adapters: make them by models.add_lora(key, variables, rules, rank), or give the "
            "model without adapters."
        )
    own = {name: x for name, x in variables.params.items() if name != LORA}
    state = {name: x for name, x in variables.state.items() if name != LORA}
    if base is not None:
        state = {**state, FROZEN: thaw(base).params}
    elif FROZEN not in state:
        raise ValueError(
            "the adapters have no base, which is the teacher of their step (shared=True): train them by a step with "
            "the base as its teacher, and evaluate models.merge_lora(variables, base)."
        )
    adapters = traverse_util.flatten_dict(variables.params[LORA], sep="/")
    names = {path.rsplit("/", 1)[0] for path in adapters}
    # Of what both have, such as a last layer of the base and one that began anew, the trained one counts.
    flat = traverse_util.flatten_dict(state.pop(FROZEN), sep="/") | traverse_util.flatten_dict(own, sep="/")
    if missing := sorted(names - flat.keys()):
        raise ValueError(f"the base has no {', '.join(missing[:5])}: give the base that the adapters were made for.")
    flat = {path: from_integers(x) for path, x in flat.items()}
    for path in names:
        flat[path] = _merged(flat[path], adapters[f"{path}/A"], adapters[f"{path}/B"], variables.state[LORA]["scale"])
    return Variables(traverse_util.unflatten_dict(flat, sep="/"), state)


def without_base(variables: Variables) -> Variables:
    """Variables of `lora(..., shared=True)` from those that `add_lora` makes.

    Args:
      variables: Variables with adapters and their base.

    Returns:
      The same without the base.
    """
    variables = as_variables(variables)
    return variables._replace(state={name: x for name, x in variables.state.items() if name != FROZEN})


_OURS = (FROZEN, LORA)
"""Entries of the state that are not the model's."""


def _merged(kernel: jax.Array, A: jax.Array, B: jax.Array, scale: jax.Array) -> jax.Array:
    """W + scale A B, in the wider format of the two."""
    change = scale.astype(A.dtype) * jnp.tensordot(A, B, 1)
    if change.shape != kernel.shape:
        raise ValueError(
            f"an adapter is made for a kernel {change.shape}, but the base has {kernel.shape}: give the base that the "
            "adapters were made for."
        )
    dtype = jnp.promote_types(kernel.dtype, change.dtype)
    return kernel.astype(dtype) + change.astype(dtype)


def _adapter(key: jax.Array, path: str, shape: tuple[int, ...], rank: int) -> dict[str, jax.Array]:
    """A and B of a kernel."""
    inputs = 1 if len(shape) == 3 and _HEADS.search(path) else len(shape) - 1
    fan_in, fan_out = int(np.prod(shape[:inputs])), int(np.prod(shape[inputs:]))
    if rank > min(fan_in, fan_out):
        raise ValueError(
            f"rank is {rank}, but {path} is a kernel of {fan_in} x {fan_out}: give at most {min(fan_in, fan_out)}, or "
            "rules that leave it out."
        )
    drawn = jax.random.normal(fold_name(key, f"{LORA}/{path}"), (*shape[:inputs], rank))
    return {"A": drawn * fan_in**-0.5, "B": jnp.zeros((rank, *shape[inputs:]))}


def _found(option: str, patterns: Sequence[str], among: Mapping[str, Any], paths: Mapping[str, Any]) -> set[str]:
    """Paths that have one of the patterns, each of which has to be found in one."""
    found: set[str] = set()
    for pattern in patterns:
        own = {path for path in among if matches(pattern, path)}
        if not own:
            what = "param" if option == "trained" else "kernel that is not trained itself"
            raise ValueError(
                f"`{option}` has the pattern {pattern!r}, which is found in the path of no {what}: the paths are "
                f"{', '.join(list(paths)[:20])}{', ...' if len(paths) > 20 else ''}."
            )
        found |= own
    return found


def _is_kernel(path: str, x: Any) -> bool:
    """True for weights of two axes or more; those of attention's biases, one for each head, are none."""
    return len(_shape(x)) > 1 and path.rsplit("/", 1)[-1] not in ("bias", "scale")


def _shape(x: Any) -> tuple[int, ...]:
    """Shape of weights, those of 8 bits too."""
    return tuple(x.values.shape if isinstance(x, Int8) else jnp.shape(x))


def _check_options(rank: int, alpha: float | None) -> None:
    """Refuses a rank that is no positive integer, and an alpha that is not positive."""
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 1:
        raise ValueError(f"rank is {rank!r}: give an integer of at least 1.")
    if alpha is not None and not 0 < alpha < float("inf"):
        raise ValueError(f"alpha is {alpha}: give a positive number, or None for the rank.")
