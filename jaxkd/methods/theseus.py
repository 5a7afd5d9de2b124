"""BERT-of-Theseus: a network whose modules are replaced, one after the other by chance, by smaller ones.

The predecessor of N blocks is cut into S modules of N / S blocks. Each has a successor of one block. In the first
phase every training batch runs through a mixture of both, drawn anew, and the successors alone are trained by the
loss of the task; in the second phase the successor is trained by itself:

    student = theseus.replacing(predecessor, successor, optax.linear_schedule(0.5, 1.0, 1000))
    term = objectives.from_labels(losses.cross_entropy)
    phase 1: `student`, its teacher `predecessor`, from theseus.begin(first variables of the successor)
    phase 2: `successor`, from theseus.finish(variables of phase 1)

`replacing` takes the blocks of two transformers of one width, of text or of images (`blocks="block"` for
`models.vision_transformer`). `replacing_stages` takes the stages of any two networks, such as residual networks, which
may differ in width:

    student = theseus.replacing_stages(predecessor, successor, ("stage1", "stage2"), optax.linear_schedule(...))
    phase 2: models.joined(predecessor, successor, ("stage1", "stage2")), from theseus.finish(variables of phase 1)

The predecessor is the teacher of the step: its variables are an argument of the compiled program, and stand in no
checkpoint. Evaluated, the student is the successor alone.

Reference:
  Xu, Zhou, Ge, Wei, Zhou, "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing", EMNLP 2020,
  https://arxiv.org/abs/2002.02925
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import models
from jaxkd.keys import fold_name
from jaxkd.models.blocks import Block, block_params, count_blocks, find_blocks, replaced_blocks
from jaxkd.models.joined import Pairs, adapted, merge, pairs_of, split_adapters, with_adapters
from jaxkd.models.stages import Stages
from jaxkd.types import TEACHER, Batch, Model, Outputs, PyTree, Schedule, Variables, as_variables

_BLOCKS = "encoder/block"
_COUNT = "batches"
"""Entry of the state that is not the successor's: the number of training batches so far."""


def replacing(
    predecessor: Model, successor: Model, probability: float | jax.Array | Schedule = 0.5, *, blocks: str = _BLOCKS
) -> Model:
    """Student of the first phase: each module of the predecessor is replaced by its successor with a probability.

    x_{m+1} = r_m scc_m(x_m) + (1 - r_m) prd_m(x_m),  r_m ~ Bernoulli(p), one draw for each module and training batch

    Embeddings and last layers are the successor's, which the predecessor lends it; they are not trained. The branch
    that was not drawn is not computed, except in stacks of students that are computed side by side (`vmap`). Each
    micro-batch counts as a batch and has draws of its own; under `pmap` each device has.

    Args:
      predecessor: The teacher, of N blocks; its variables come from the step, so give the same model to it as teacher.
      successor: The network that is trained, of S blocks; S divides N.
      probability: p, a number, or a schedule of the number of training batches so far, such as
        `optax.linear_schedule(b, 1.0, steps)` for the paper's min(1, b + k t). It is kept within 0..1.
      blocks: Path of the blocks in the params of both, without their numbers.

    Returns:
      A model whose params are the successor's blocks; its state has all else of the successor, and the number of
      training batches. Evaluated it is the successor.

    Raises:
      ValueError: If the probability is a number outside 0..1; when the step is made, if S does not divide N, or blocks
        of the two differ in shape.
    """
    _check_probability(probability)
    whole = models.frozen(successor, _rest(blocks))

    def init(key: jax.Array, batch: Batch) -> Variables:
        return begin(successor.init(key, batch), blocks=blocks)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        own, count = _parts(variables)
        batch, teacher = {name: x for name, x in batch.items() if name != TEACHER}, batch.get(TEACHER)
        if not train:
            outputs, changed = whole.apply(own, batch, key, False)
            return outputs, {**changed, _COUNT: count}
        known, key = _needed(teacher, key)
        modules = _Modules(predecessor, own.params, known, batch, blocks)
        drawn = _draw(key, probability, count, modules.count)
        with replaced_blocks(modules.mixed(drawn, fold_name(key, "predecessor"), key), blocks):
            outputs, changed = whole.apply(own, batch, key, True)
        return outputs, {**changed, _COUNT: count + 1}

    return Model(init, apply, reads_teacher=True)


def replacing_stages(
    predecessor: Model, successor: Model, stages: Pairs, probability: float | jax.Array | Schedule = 0.5
) -> Model:
    """Student of the first phase for any networks: each stage of the predecessor is replaced with a probability.

    x_m = r_m write_m(scc_m(read_{m-1}(x_{m-1}))) + (1 - r_m) prd_m(x_{m-1}),  r_m ~ Bernoulli(p), one draw for each
    stage and training batch

    All stages take part, from the images to the first feature and from the last one to the logits too: probability 0 is
    the predecessor, 1 the successor. All of the successor is trained. `read` and `write` are linear adapters, trained
    with it, where a feature has another width; there are none where the widths are equal. Batch norms of the
    predecessor use their running statistics, which stay as they are; those of a successor's stage use the batch's, and
    move theirs only where the stage was drawn.

    Args:
      predecessor: The teacher; its variables come from the step, so give the same model to it as teacher.
      successor: The network that is trained, with as many stages.
      stages: Features that all stages but the last end in: ("stage1", "stage2"), or name in the successor -> name in
        the predecessor.
      probability: As for `replacing`.

    Returns:
      A model whose params are the successor's and the adapters, and whose state also counts the training batches. In
      training its features are the cut ones, as wide as the predecessor's. Evaluated it is the joined successor.

    Raises:
      ValueError: If the probability is a number outside 0..1; when the step is made, if a feature is missing or does
        not cut its network, or features of the two differ in more than their width.
    """
    _check_probability(probability)
    pairs = pairs_of(stages)
    whole = models.joined(predecessor, successor, pairs)

    def init(key: jax.Array, batch: Batch) -> Variables:
        own = with_adapters(successor.init(key, batch), predecessor, successor, pairs, key, batch)
        return own._replace(state={**own.state, _COUNT: jnp.zeros((), jnp.int32)})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        own, count = _parts(variables)
        rows, teacher = {name: x for name, x in batch.items() if name != TEACHER}, batch.get(TEACHER)
        if not train:
            outputs, changed = whole.apply(merge(own), rows, key, False)
            return outputs, {**changed, _COUNT: count}
        known, key = _needed(teacher, key)
        own, adapters = split_adapters(own)
        new = Stages(successor, pairs, own, rows, key, True)
        old = Stages(predecessor, pairs.values(), jax.lax.stop_gradient(known), rows, None, False)
        if tuple(pairs[name] for name in new.names) != old.names:
            raise ValueError(
                f"the successor computes its features in the order {new.names}, the predecessor in {old.names}: pair "
                "each with the one of the same place."
            )
        drawn = _draw(key, probability, count, len(pairs) + 1)
        logits, features, leaves = _mixed(new, old, adapters, own.state, drawn)
        return Outputs(logits, features), {**new.join(leaves), _COUNT: count + 1}

    return Model(init, apply, reads_teacher=True)


def _mixed(
    new: Stages, old: Stages, adapters: Any, state: PyTree, drawn: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], list[list[jax.Array]]]:
    """Logits, features by the successor's names, and what each stage leaves of the state, as `drawn` [S] says."""
    features: dict[str, jax.Array] = {}
    leaves: list[list[jax.Array]] = []
    for m in range(len(new.names) + 1):
        name = new.names[m] if m < len(new.names) else None
        before = new.before(m, state)

        def successor(x: dict[str, jax.Array], m: int = m, name: str | None = name) -> tuple[jax.Array, Any]:
            read = {n: adapted(adapters[n]["read"] if n in adapters else None, x[n]) for n in x}
            value, changed = new.stage(m, read)
            return adapted(adapters[name]["write"] if name in adapters else None, value), changed

        def predecessor(x: dict[str, jax.Array], m: int = m, before: Any = before) -> tuple[jax.Array, Any]:
            value, _ = old.stage(m, {n: x[own] for n, own in zip(old.names, new.names, strict=True) if own in x})
            return value, before

        shapes = [jax.tree.map(jnp.shape, jax.eval_shape(way, features)[0]) for way in (successor, predecessor)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"stage {m} of the predecessor gives {shapes[1]} and that of the successor {shapes[0]}: give both the "
                "same classes."
            )
        value, changed = jax.lax.cond(drawn[m], successor, predecessor, features)
        features = features if name is None else {**features, name: value}
        leaves.append(changed)
    return value, features, leaves


def _check_probability(probability: Any) -> None:
    if not callable(probability) and not isinstance(probability, jax.core.Tracer) and not 0 <= probability <= 1:
        raise ValueError(f"the probability of replacement is {probability}: give a number from 0 to 1, or a schedule.")


def _needed(teacher: Any, key: jax.Array | None) -> tuple[Variables, jax.Array]:
    """The predecessor's variables and the key of a training step, both of which it has to have."""
    if teacher is None or key is None:
        missing = "the variables of its predecessor" if teacher is None else "a key"
        raise ValueError(
            f"this student of BERT-of-Theseus needs {missing}: train it by train.make_train_step or "
            "experiment.train_phase, with the predecessor as the teacher."
        )
    return as_variables(teacher), key


def _draw(key: jax.Array, probability: Any, count: jax.Array, modules: int) -> jax.Array:
    """Whether each module is replaced in this batch, bool [S]."""
    p = probability(count) if callable(probability) else probability
    return jax.random.bernoulli(fold_name(key, "replaced"), jnp.clip(p, 0, 1), (modules,))


class _Modules:
    """The predecessor's modules and their successors, checked to fit each other.

    Attributes:
      count: S.
    """

    def __init__(self, predecessor: Model, params: PyTree, teacher: Variables, batch: Batch, path: str) -> None:
        numbers = {"successor": count_blocks(params, path), "predecessor": count_blocks(teacher.params, path)}
        self.count, total = numbers.values()
        if total % self.count:
            raise ValueError(
                f"the successor has {self.count} blocks and the predecessor {total}: give a divisor of {total}, so "
                "that each successor replaces as many blocks."
            )
        self._each = total // self.count
        self._own = [block_params(params, m, path) for m in range(self.count)]
        self._old = [_in_dtype_of(self._own[0], block_params(teacher.params, i, path)) for i in range(total)]
        self._blocks = find_blocks(predecessor, teacher, batch, path)

    def mixed(self, drawn: jax.Array, old_key: jax.Array, own_key: jax.Array) -> Any:
        """A function that computes one module in place of a successor's block, as `drawn` [S] says."""

        def replace(m: int, block: Block, x: jax.Array, *rest: Any, **keywords: Any) -> Any:
            for i in range(m * self._each, (m + 1) * self._each):
                if self._blocks[i].shapes != block.shapes:
                    raise ValueError(
                        f"block {i} of the predecessor reads arrays of shapes {self._blocks[i].shapes}, but block {m} "
                        f"of the successor {block.shapes}: give both the same width and kinds of attention."
                    )

            def successor(x: jax.Array) -> Any:
                return block(self._own[m], jax.random.fold_in(own_key, m), x, *rest, **keywords)

            def predecessor(x: jax.Array) -> Any:
                result: Any = x
                for i in range(m * self._each, (m + 1) * self._each):
                    result = self._blocks[i](self._old[i], jax.random.fold_in(old_key, i), x, *rest, **keywords)
                    x = result[0] if isinstance(result, tuple) else result
                return result

            shapes = [jax.tree.map(jnp.shape, jax.eval_shape(way, x)) for way in (successor, predecessor)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"module {m} of the predecessor gives {shapes[1]} and its successor {shapes[0]}: give both the "
                    "same width and the same number of heads."
                )
            return jax.lax.cond(drawn[m], successor, predecessor, x)

        return replace


def _in_dtype_of(own: PyTree, block: PyTree) -> PyTree:
    """A block of the predecessor in the format in which the successor computes."""
    dtype = jax.tree.leaves(own)[0].dtype
    if any(not jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(block)):
        raise ValueError(
            "the predecessor's weights are integers (int8), but its blocks are run as they are: give it as floating "
            "numbers, --teacher-weights float32 or bfloat16."
        )
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x).astype(dtype), block)


def begin(successor_variables: Variables, *, blocks: str = _BLOCKS) -> Variables:
    """Variables of `replacing`'s student with those of the successor.

    Args:
      successor_variables: The successor's first variables: the predecessor's embeddings and last layers, and its first
        S blocks, as in the authors' code.
      blocks: As given to `replacing`.

    Returns:
      The variables, for `student_variables=` or `start=`.
    """
    whole = models.thaw(successor_variables)
    count_blocks(whole.params, blocks)
    params, state = models.freeze(whole, _rest(blocks))
    return Variables(params, {**state, _COUNT: jnp.zeros((), jnp.int32)})


def finish(variables: Variables) -> Variables:
    """Variables of the successor after the first phase, with which the second one starts.

    Args:
      variables: Those of `replacing`'s student.

    Returns:
      The successor's; those of `models.joined` if stages of other widths were replaced.
    """
    return models.thaw(merge(_parts(variables)[0]))


def _parts(variables: Variables) -> tuple[Variables, jax.Array]:
    """Variables of the successor, and the number of training batches so far."""
    params, state = as_variables(variables)
    if _COUNT not in state:
        raise ValueError("the variables are not those of a student of BERT-of-Theseus: make them by theseus.begin.")
    return Variables(params, {name: x for name, x in state.items() if name != _COUNT}), state[_COUNT]


def _rest(blocks: str) -> str:
    """Pattern of the paths of everything but the blocks."""
    return rf"^(?!{re.escape(blocks)}\d)"
