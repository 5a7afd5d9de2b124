"""Terms with a memory in their state: CRD's banks of embeddings, queues of InfoNCE and SEED, CIRKD's rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import losses
from jaxkd.losses import contrastive, segmentation
from jaxkd.losses.dense import nearest_labels
from jaxkd.objectives.networks.core import Network
from jaxkd.objectives.projections import linear, mlp
from jaxkd.objectives.terms import Result, stateful
from jaxkd.types import PyTree, Term, Variables


def crd(
    *,
    student: str,
    teacher: str,
    examples: int,
    labels: ArrayLike | None = None,
    width: int = 128,
    negatives: int = 16384,
    momentum: float = 0.5,
    temperature: float = 0.07,
    index: str = "id",
    where: str | None = None,
) -> Term:
    """Term of CRD: linear embeddings of both sides, both trained, against banks of all examples' embeddings.

    Args:
      student: Name of the student's feature [B, Ds].
      teacher: Name of the teacher's feature [B, Dt].
      examples: N, the number of examples of the data set.
      labels: [N] classes of all examples, so that negatives come from other classes only, as in the paper's results;
        any other example is a negative if None.
      width: D of the embeddings.
      negatives: K for each example, drawn anew in each step.
      momentum: Weight of the banks' old rows.
      temperature: T.
      index: Field of the batch with each example's row, integers in 0..N-1.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.

    Returns:
      A term with parameters `student` and `teacher` and the state `bank`.

    Raises:
      ValueError: If the labels are not those of N examples, or all of one class.
    """
    order = None if labels is None else _other_classes(np.asarray(labels), examples)

    def init(key: jax.Array, s: Any, t: Any, own: Any) -> Variables:
        params, kb = _embeddings(key, width, s, t)
        state = {"bank": contrastive.crd_init(kb, examples=examples, width=width)}
        return Variables(params, state if order is None else {**state, "classes": jax.tree.map(jnp.asarray, order)})

    def call(
        variables: Variables,
        key: jax.Array,
        s: jax.Array,
        t: jax.Array,
        own: jax.Array,
        *,
        temperature: ArrayLike = 0.07,
        momentum: ArrayLike = 0.5,
    ) -> Result:
        params, state = variables
        s, t = _embedded(params, s, t)
        if order is None:
            rows = contrastive.crd_indices(key, own, examples=examples, negatives=negatives)
        else:
            rows = negatives_of_other_classes(key, own, state["classes"], examples, negatives)
        values = losses.crd(s, t, rows, state["bank"], temperature=temperature)
        kept = jax.lax.stop_gradient((s, t))
        bank = contrastive.crd_update(state["bank"], *kept, rows, momentum=momentum, temperature=temperature)
        return values, {"bank": bank}, {}

    paths = (f"student.{student}", f"teacher.{teacher}", f"batch.{index}")
    numbers: dict[str, Any] = {"temperature": temperature, "momentum": momentum}
    return stateful(call, *paths, init=init, where=where, couples=True, **numbers)


def info_nce_queue(
    *, student: str, teacher: str, size: int = 4096, width: int = 128, where: str | None = None, **hyper: Any
) -> Term:
    """Term of InfoNCE with a queue of the teacher's latest embeddings; both sides are embedded linearly and trained.

    Args:
      student: Name of the student's feature [B, Ds].
      teacher: Name of the teacher's feature [B, Dt].
      size: Q, at least the batch size.
      width: D of the embeddings.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.info_nce_queue`.

    Returns:
      A term with parameters `student` and `teacher` and the state `queue`.
    """

    def init(key: jax.Array, s: Any, t: Any) -> Variables:
        if size < len(s):
            raise ValueError(f"the queue holds {size} embeddings but a batch has {len(s)}: make it at least as large.")
        params, kq = _embeddings(key, width, s, t)
        return Variables(params, {"queue": contrastive.queue_init(kq, size=size, width=width)})

    def call(variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, **hyper: Any) -> Result:
        params, state = variables
        s, t = _embedded(params, s, t)
        values = losses.info_nce_queue(s, t, state["queue"], **hyper)
        return values, {"queue": contrastive.queue_push(state["queue"], jax.lax.stop_gradient(t))}, {}

    paths = (f"student.{student}", f"teacher.{teacher}")
    return stateful(call, *paths, init=init, hyper_of=losses.info_nce_queue, where=where, couples=True, **hyper)


def queue_similarity(
    *,
    student: str,
    teacher: str,
    project: Network | None = None,
    size: int = 4096,
    where: str | None = None,
    **hyper: Any,
) -> Term:
    """Term of SEED: similarities to a queue of the teacher's latest embeddings, of the student's projected embedding.

    The teacher's embeddings are taken as they are, so that the student's alone are moved.

    Args:
      student: Name of the student's feature [B, Ds].
      teacher: Name of the teacher's feature [B, Dt].
      project: Map from the student's feature to the teacher's width, trained with the student; as in the paper a
        perceptron as wide inside as its result if None.
      size: Q, at least the batch size.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.queue_similarity`.

    Returns:
      A term with parameters `student` and the state `queue`.

    Raises:
      ValueError: At the start, if the queue is smaller than a batch.
    """

    def chosen(width: int) -> Network:
        return mlp(hidden=(width,)) if project is None else project

    def init(key: jax.Array, s: Any, t: Any) -> Variables:
        if size < len(s):
            raise ValueError(f"the queue holds {size} embeddings but a batch has {len(s)}: make it at least as large.")
        ks, kq = jax.random.split(key)
        params = chosen(t.shape[-1]).init(ks, tuple(s.shape), tuple(t.shape))
        return Variables({"student": params}, {"queue": contrastive.queue_init(kq, size=size, width=t.shape[-1])})

    def call(variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, **hyper: Any) -> Result:
        params, state = variables
        values = losses.queue_similarity(chosen(t.shape[-1]).apply(params["student"], s), t, state["queue"], **hyper)
        return values, {"queue": contrastive.queue_push(state["queue"], t)}, {}

    paths = (f"student.{student}", f"teacher.{teacher}")
    return stateful(call, *paths, init=init, hyper_of=losses.queue_similarity, where=where, couples=True, **hyper)


def cirkd_memory(
    *,
    student: str,
    teacher: str,
    num_classes: int,
    label: str = "label",
    pixels: int = 2048,
    regions: int = 256,
    drawn_pixels: int = 256,
    drawn_regions: int = 64,
    each: int = 16,
    pixel_weight: float = 0.1,
    region_weight: float = 0.1,
    temperature: float = 0.1,
    kd_temperature: float = 1.0,
    ignore: int | None = 255,
) -> Term:
    """Term of CIRKD's memories: a perceptron embeds the student's pixels, which are compared with the teacher's rows.

    pixel_weight * cirkd_memory(s, t, V_p) + region_weight * cirkd_memory(s, t, V_r)

    V_p and V_r are drawn from the memory after this batch came in, as in the authors' code, whose perceptron has a
    batch norm too. The part of CIRKD within a batch is `losses.cirkd_pixels`.

    Args:
      student: Name of the student's feature [B, H, W, Cs].
      teacher: Name of the teacher's feature [B, H, W, Ct].
      num_classes: K.
      label: Field of the batch with the labels [B, Hl, Wl].
      pixels: N, pixels of each class that are remembered.
      regions: M, regions of each class that are remembered.
      drawn_pixels: Pixels of each class that a step compares with, at most N.
      drawn_regions: Regions of each class that a step compares with, at most M.
      each: Pixels of each class that an image adds, at most.
      pixel_weight: Weight of the comparison with pixels.
      region_weight: Weight of the comparison with regions.
      temperature: tau of the similarities.
      kd_temperature: T of the distributions.
      ignore: Label of pixels that count nowhere; none if None.

    Returns:
      A term with parameters `student` and the state `memory`.

    Raises:
      ValueError: If more rows are drawn than there are.

    Reference:
      Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022,
      https://arxiv.org/abs/2204.06986
    """
    if not (1 <= drawn_pixels <= pixels and 1 <= drawn_regions <= regions):
        raise ValueError(
            f"{drawn_pixels} of {pixels} pixels and {drawn_regions} of {regions} regions are drawn: draw at least 1 "
            "and at most all."
        )

    def init(key: jax.Array, s: Any, t: Any, y: Any) -> Variables:
        kp, km = jax.random.split(key)
        width = t.shape[-1]
        memory = segmentation.cirkd_init(km, num_classes=num_classes, pixels=pixels, regions=regions, width=width)
        return Variables({"student": mlp(hidden=(width,)).init(kp, s.shape, t.shape)}, {"memory": memory})

    def call(
        variables: Variables,
        key: jax.Array,
        s: jax.Array,
        t: jax.Array,
        y: jax.Array,
        *,
        pixel_weight: ArrayLike = 0.1,
        region_weight: ArrayLike = 0.1,
        temperature: ArrayLike = 0.1,
        kd_temperature: ArrayLike = 1.0,
    ) -> Result:
        params, state = variables
        kept = jax.lax.stop_gradient(t)
        kept_key, drawn_key = jax.random.split(key)
        memory = segmentation.cirkd_push(state["memory"], kept, y, kept_key, each=each, ignore=ignore)
        mask = None if ignore is None else nearest_labels(y, s.shape) != ignore
        s, values = mlp(hidden=()).apply(params["student"], s), []
        # The largest of one draw of numbers: `random.choice` without replacement takes longer to compile.
        numbers = jax.random.uniform(drawn_key, (pixels + regions,))
        for rows, own, count in (
            (memory.pixels, numbers[:pixels], drawn_pixels),
            (memory.regions, numbers[pixels:], drawn_regions),
        ):
            drawn = rows[:, jax.lax.top_k(own, count)[1]].reshape(-1, rows.shape[-1])
            options: dict[str, Any] = {"temperature": temperature, "kd_temperature": kd_temperature, "mask": mask}
            values.append(losses.cirkd_memory(s, t, drawn, **options))
        pixel, region = (jnp.asarray(w, values[0].dtype) for w in (pixel_weight, region_weight))
        return pixel * values[0] + region * values[1], {"memory": memory}, {}

    paths = (f"student.{student}", f"teacher.{teacher}", f"batch.{label}")
    numbers: dict[str, Any] = {"pixel_weight": pixel_weight, "region_weight": region_weight}
    numbers |= {"temperature": temperature, "kd_temperature": kd_temperature}
    return stateful(call, *paths, init=init, couples=True, **numbers)


def _embeddings(key: jax.Array, width: int, s: Any, t: Any) -> tuple[PyTree, jax.Array]:
    """Parameters of both sides' linear embeddings, and a key for the memory."""
    ks, kt, rest = jax.random.split(key, 3)
    project = linear(width=width)
    return {"student": project.init(ks, s.shape, t.shape), "teacher": project.init(kt, t.shape, s.shape)}, rest


def _embedded(params: PyTree, s: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    return linear().apply(params["student"], s), linear().apply(params["teacher"], t)


def _other_classes(labels: np.ndarray, examples: int) -> PyTree:
    """Examples ordered by class, and for each example the begin and the size of its class in that order."""
    if labels.shape != (examples,):
        raise ValueError(f"labels have shape {labels.shape} but there are {examples} examples: give one for each.")
    order = np.argsort(labels, kind="stable")
    _, inverse, count = np.unique(labels, return_inverse=True, return_counts=True)
    if count.max() == examples:
        raise ValueError("all examples are of one class, so there is no negative from another: leave `labels` out.")
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    pieces = {"order": order, "start": start[inverse], "count": count[inverse]}
    return {name: a.astype(np.int32) for name, a in pieces.items()}


def negatives_of_other_classes(
    key: jax.Array, own: jax.Array, classes: PyTree, examples: int, negatives: int
) -> jax.Array:
    """Rows as `contrastive.crd_indices` gives them, with negatives drawn evenly from the examples of other classes."""
    start, count = classes["start"][own][:, None], classes["count"][own][:, None]
    place = jax.random.randint(key, (len(own), negatives), 0, examples - count, jnp.int32)
    place = jnp.where(place < start, place, place + count)
    return jnp.concatenate([own[:, None].astype(jnp.int32), classes["order"][place]], axis=1)
