"""Terms of the methods on one feature map of each side, with the small networks that they train."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import losses, numerics
from jaxkd.models.reused import reused_classifier
from jaxkd.objectives import networks
from jaxkd.objectives.paths import last_layer, pick
from jaxkd.objectives.projections import connector, linear, matched
from jaxkd.objectives.terms import Result, from_features, stateful, trained
from jaxkd.types import Batch, Outputs, PyTree, Term, Variables

Classifier = tuple[ArrayLike, ArrayLike]
"""Kernel [C, K] and bias [K] of the teacher's last layer, which is not trained."""


def vid(*, student: str, teacher: str, hidden: int | None = None, where: str | None = None, **hyper: Any) -> Term:
    """Term of VID between two maps: a small network predicts the teacher's map; each channel has a trained variance.

    Args:
      student: Name of the student's feature [B, H, W, Cs].
      teacher: Name of the teacher's feature [B, H', W', Ct]; the larger map is pooled.
      hidden: Channels between the convolutions; Ct if None, as in the CIFAR-100 benchmark.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.vid`.

    Returns:
      A term with parameters `kernels` (of `networks.pointwise`) and `log_scale` [Ct]; the variance starts at 5.
    """

    mean = networks.pointwise(hidden=hidden)

    def init(key: jax.Array, s: Any, t: Any) -> PyTree:
        log_scale = jnp.full(t.shape[-1], math.log(math.expm1(5 - 1e-5)))
        return {"kernels": mean.init(key, s.shape, t.shape), "log_scale": log_scale}

    def call(params: PyTree, s: jax.Array, t: jax.Array, **hyper: Any) -> jax.Array:
        s, t = numerics.match_resolution(s, t)
        return losses.vid(mean.apply(params["kernels"], s), t, params["log_scale"], **hyper)

    paths = (f"student.{student}", f"teacher.{teacher}")
    return trained(call, *paths, init=init, hyper_of=losses.vid, where=where, **hyper)


def paraphrase(*, teacher: str, factor: float = 0.5) -> Term:
    """Term that trains factor transfer's paraphraser on the teacher alone, before `ft`: an autoencoder of its map.

    mean (decode(encode(t)) - t)^2

    Args:
      teacher: Name of the teacher's feature [B, H, W, C].
      factor: Channels of the factor divided by C; the paper compares 0.5 to 4.

    Returns:
      A term with parameters `encoder`, which `ft` takes as its paraphraser, and `decoder`.
    """

    # The last layer is linear, so that the whole range of the map can be reproduced.
    encoder, decoder = networks.translator(), networks.translator(linear_end=True)

    def init(key: jax.Array, t: Any) -> PyTree:
        keys = jax.random.split(key)
        code = (*t.shape[:-1], max(1, round(factor * t.shape[-1])))
        return {"encoder": encoder.init(keys[0], t.shape, code), "decoder": decoder.init(keys[1], code, t.shape)}

    def call(params: PyTree, t: jax.Array) -> jax.Array:
        return losses.hint(decoder.apply(params["decoder"], encoder.apply(params["encoder"], t)), t)

    return trained(call, f"teacher.{teacher}", init=init)


def ft(
    *,
    student: str,
    teacher: str,
    paraphraser: PyTree,
    norm: bool = False,
    loss: Callable[..., jax.Array] = losses.ft,
    where: str | None = None,
    **hyper: Any,
) -> Term:
    """Term of factor transfer: a translator of three 3x3 convolutions follows the trained paraphraser's factor.

    Args:
      student: Name of the student's feature [B, H, W, Cs].
      teacher: Name of the teacher's feature [B, H', W', Ct]; the larger map is pooled.
      paraphraser: The `encoder` that a term `paraphrase` trained; it stays as it is.
      norm: Whether the translator has batch norms, as in the CIFAR-100 benchmark; the term then couples the batch.
      loss: Loss between the factors: the paper's, or `losses.ft_repdistiller` as in the CIFAR-100 benchmark.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of the loss.

    Returns:
      A term whose parameters are the translator's and whose state holds the paraphraser.
    """

    translator = networks.translator(norm=norm)

    def init(key: jax.Array, s: Any, t: Any) -> Variables:
        factor = (*t.shape[:-1], paraphraser["kernels"][-1].shape[-1])
        params = translator.init(key, s.shape, factor)
        return Variables(params, {"paraphraser": jax.tree.map(jnp.asarray, paraphraser)})

    def call(variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, **hyper: Any) -> Result:
        params, state = variables
        s, t = numerics.match_resolution(s, t)
        factors = translator.apply(params, s), translator.apply(state["paraphraser"], t)
        return loss(*factors, **hyper), {}, {}

    paths = (f"student.{student}", f"teacher.{teacher}")
    return stateful(call, *paths, init=init, hyper_of=loss, where=where, couples=norm, **hyper)


def mgd(
    *,
    student: str,
    teacher: str,
    hidden: float = 0.15,
    over: str = "channels",
    where: str | None = None,
    **hyper: Any,
) -> Term:
    """Term of masked generative distillation: part of the student's map is hidden, the teacher's is generated.

    Args:
      student: Name of the student's feature [B, H, W, Cs].
      teacher: Name of the teacher's feature [B, H', W', Ct]; the larger map is pooled.
      hidden: Fraction hidden at random in each step; the paper has 0.15 for classification, 0.45 to 0.75 for detection.
      over: "channels" (classification) or "positions" (detection, segmentation).
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.mgd`.

    Returns:
      A term with parameters `align` (a 1x1 convolution) and those of `networks.generator`.

    Raises:
      ValueError: If `over` is neither.
    """
    if over not in ("channels", "positions"):
        raise ValueError(f'over={over!r} is not known: write "channels" or "positions".')
    align, generator = linear(), networks.generator()

    def init(key: jax.Array, s: Any, t: Any) -> Variables:
        first, second = jax.random.split(key)
        shapes = matched(s, t)
        return Variables({"align": align.init(first, *shapes), **generator.init(second, *shapes)}, {})

    def call(variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, **hyper: Any) -> Result:
        p, (s, t) = variables.params, numerics.match_resolution(s, t)
        shape = (len(t), 1, 1, t.shape[-1]) if over == "channels" else (*t.shape[:3], 1)
        mask = jax.random.bernoulli(key, 1 - hidden, shape).astype(jnp.float32)
        return losses.mgd(generator.apply(p, align.apply(p["align"], s), mask), t, **hyper), {}, {}

    paths = (f"student.{student}", f"teacher.{teacher}")
    return stateful(call, *paths, init=init, hyper_of=losses.mgd, where=where, **hyper)


def srrl(*, student: str, teacher: str, classifier: Classifier, where: str | None = None, **hyper: Any) -> Term:
    """Term of SRRL: the student's map, projected, and the logits that the teacher's classifier gives for it.

    Args:
      student: Name of the student's last map [B, H, W, Cs].
      teacher: Name of the teacher's last map [B, H', W', Ct]; the larger one is pooled.
      classifier: The teacher's last layer.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.srrl`.

    Returns:
      A term whose parameters are those of `connector(relu=True)` and whose state holds the classifier.
    """
    project = connector(relu=True)

    def init(key: jax.Array, s: Any, t: Any, logits: Any) -> Variables:
        params = project.init(key, *matched(s, t))
        return Variables(params, {"classifier": _frozen(classifier, t, logits)})

    def call(
        variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, logits: jax.Array, **hyper: Any
    ) -> Result:
        params, state = variables
        s, t = numerics.match_resolution(s, t)
        s = project.apply(params, s)
        return losses.srrl(s, t, reused_classifier(s, *state["classifier"]), logits, **hyper), {}, {}

    paths = (f"student.{student}", f"teacher.{teacher}", "teacher.logits")
    return stateful(call, *paths, init=init, hyper_of=losses.srrl, where=where, couples=True, **hyper)


def fgd(
    *,
    student: str,
    teacher: str,
    image_shape: tuple[float, float],
    boxes: str = "boxes",
    valid: str | None = None,
    where: str | None = None,
    **hyper: Any,
) -> Term:
    """Term of FGD: a 1x1 convolution to the teacher's channels and a context block on each side, all of them trained.

    Args:
      student: Name of the student's feature [B, H, W, Cs].
      teacher: Name of the teacher's feature [B, H, W, Ct].
      image_shape: (height, width) of the image in pixels.
      boxes: Field of the batch with the boxes, [B, n, 4] in pixels.
      valid: Field of the batch [B, n], false for boxes that only pad; none if None.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.fgd`.

    Returns:
      A term with parameters `align`, `student` and `teacher` (of `networks.context_block`).
    """
    align, block = linear(), networks.context_block()

    def init(key: jax.Array, s: Any, t: Any, *rest: Any) -> PyTree:
        keys = jax.random.split(key, 3)
        sides = zip(("student", "teacher"), keys[1:], strict=True)
        blocks = {side: block.init(k, t.shape, t.shape) for side, k in sides}
        return {"align": align.init(keys[0], s.shape, t.shape), **blocks}

    def call(p: PyTree, s: jax.Array, t: jax.Array, corners: jax.Array, *keep: jax.Array, **hyper: Any) -> jax.Array:
        options = {"valid": keep[0], **hyper} if keep else hyper
        made = align.apply(p["align"], s)
        return losses.fgd(made, t, corners, p["student"], p["teacher"], image_shape=image_shape, **options)

    paths = [f"student.{student}", f"teacher.{teacher}", f"batch.{boxes}", *([f"batch.{valid}"] if valid else [])]
    return trained(call, *paths, init=init, hyper_of=losses.fgd, where=where, **hyper)


def cat_kd(*, student: str = "last", teacher: str = "last", where: str | None = None, **hyper: Any) -> Term:
    """Term of CAT-KD: the class activation maps that each side's last layer makes of its last map.

    cat_kd(F_s W_s, F_t W_t)

    Both models must give their last layer: `models.with_head(model)`.

    Args:
      student: Name of the student's last map [B, H, W, Cs], whose mean its last layer reads.
      teacher: Name of the teacher's, [B, H', W', Ct].
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.cat_kd`.

    Returns:
      A term without parameters.

    Raises:
      ValueError: When the step is made, if a model has no such feature or does not give its last layer.
    """
    term = from_features(losses.cat_kd, student="maps", teacher="maps", where=where, **hyper)

    def maps(side: Outputs, name: str, whose: str) -> Outputs:
        kernel = last_layer(side, whose)["kernel"]
        return Outputs(side.logits, {"maps": pick(side, name, whose) @ kernel})

    def both(s: Outputs, t: Outputs) -> tuple[Outputs, Outputs]:
        return maps(s, student, "student"), maps(t, teacher, "teacher")

    def init(key: jax.Array, s: Outputs, t: Outputs, batch: Batch) -> Variables:
        maps_s, maps_t = jax.eval_shape(both, s, t)
        return term.init(key, maps_s, maps_t, batch)

    def apply(
        variables: Variables, s: Outputs, t: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        value, state, metrics = term.apply(variables, *both(s, t), batch, key, step)
        return value, state, dict(metrics)

    return Term(init, apply)


def _frozen(classifier: Classifier, t: Any, logits: Any) -> tuple[jax.Array, jax.Array]:
    """The teacher's classifier as float32 arrays, of the teacher's channels and classes."""
    kernel, bias = (jnp.asarray(a, jnp.float32) for a in classifier)
    if kernel.shape != (t.shape[-1], logits.shape[-1]) or bias.shape != logits.shape[-1:]:
        raise ValueError(
            f"the classifier has shapes {kernel.shape} and {bias.shape} but the teacher's map has {t.shape[-1]} "
            f"channels and its logits {logits.shape[-1]} classes: give the teacher's last layer, kernel [C, K] first."
        )
    return kernel, bias
