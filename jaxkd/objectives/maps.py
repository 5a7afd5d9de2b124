"""Terms of the methods on feature maps whose loss comes with small networks of its own, trained with the student."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import losses, numerics
from jaxkd.losses import dense
from jaxkd.models.reused import reused_classifier
from jaxkd.objectives import networks, regressors
from jaxkd.objectives.projections import connector, conv_chain, conv_kernel, dense_params, linear, norm_params
from jaxkd.objectives.terms import features_of, stateful, trained
from jaxkd.types import PyTree, Term, Variables

Classifier = tuple[ArrayLike, ArrayLike]
"""Kernel [C, K] and bias [K] of the teacher's last layer, which stays as it is."""

_Found = tuple[jax.Array, dict, dict]
"""Loss, state, metrics: what `stateful` asks for."""


def vid(*, student: str, teacher: str, hidden: int | None = None, where: str | None = None, **hyper: Any) -> Term:
    """Term of VID between two maps: three 1x1 convolutions predict the teacher's map, a variance a channel is trained.

    Args:
      student: Name of the student's feature [B, H, W, Cs].
      teacher: Name of the teacher's feature [B, H', W', Ct]; the larger map is pooled.
      hidden: Channels between the convolutions; Ct if None, as in the CIFAR-100 benchmark.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of `losses.vid`.

    Returns:
      A term with parameters `kernels` and `log_scale`; the variance starts at 5.
    """

    def init(key: jax.Array, s: Any, t: Any) -> PyTree:
        width = hidden or t.shape[-1]
        sizes = (s.shape[-1], width, width, t.shape[-1])
        return {
            "kernels": conv_chain(key, 1, sizes),
            "log_scale": jnp.full(t.shape[-1], math.log(math.expm1(5 - 1e-5))),
        }

    def call(params: PyTree, s: jax.Array, t: jax.Array, **hyper: Any) -> jax.Array:
        s, t = numerics.match_resolution(s, t)
        return losses.vid(regressors.vid_mean(s, params["kernels"]), t, params["log_scale"], **hyper)

    paths = (f"student.{student}", f"teacher.{teacher}")
    return trained(call, *paths, init=init, hyper_of=losses.vid, where=where, **hyper)


def ab(*, students: Sequence[str], teachers: Sequence[str], where: str | None = None, **hyper: Any) -> Term:
    """Term of activation boundaries: 1x1 convolution and batch norm a layer, which couples the batch, then `losses.ab`.

    Args:
      students: Names of the student's maps before the ReLU, in order.
      teachers: Names of the teacher's maps before the ReLU; of each pair the larger is pooled.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of `losses.ab`.

    Returns:
      A term whose parameters are a list of `connector`'s.
    """
    project = connector()

    def call(params: PyTree, s: list[jax.Array], t: list[jax.Array], **hyper: Any) -> jax.Array:
        s, t = _match_all(s, t)
        return losses.ab([project.apply(p, x) for p, x in zip(params, s, strict=True)], t, **hyper)

    paths = (features_of("student", students), features_of("teacher", teachers))
    return trained(call, *paths, init=_connectors, hyper_of=losses.ab, where=where, couples=True, **hyper)


def ofd(
    *,
    students: Sequence[str],
    teachers: Sequence[str],
    norms: Sequence[tuple[ArrayLike, ArrayLike]],
    scale: float = 1e-3,
) -> Term:
    """Term of the overhaul of feature distillation: deeper layers count twice as much as the layer before.

    scale * sum_i 2^-(n-1-i) ofd(connector_i(s_i), t_i, margin_i)

    Args:
      students: Names of the student's n maps before the ReLU, in order.
      teachers: Names of the teacher's maps before the ReLU; of each pair the larger is pooled.
      norms: Scale and bias [C] of the teacher's batch norm before each of those ReLUs, from which the margins follow.
      scale: Factor of the sum; the authors have 1/1000 on CIFAR-100 and 1/10000 on ImageNet.

    Returns:
      A term whose parameters are a list of `connector`'s and whose state holds `scale` and `margins`.
    """
    project, n = connector(), len(students)
    _check_counts(students, teachers, norms)

    def init(key: jax.Array, s: list[Any], t: list[Any]) -> Variables:
        margins = [regressors.ofd_margin(*norm) for norm in norms]
        return Variables(_connectors(key, s, t), {"margins": margins})

    def call(
        variables: Variables, key: jax.Array, s: list[jax.Array], t: list[jax.Array], *, scale: ArrayLike = 1e-3
    ) -> _Found:
        params, state = variables
        layers = zip(params, *_match_all(s, t), state["margins"], strict=True)
        each = [losses.ofd(project.apply(p, a), b, m) * 2.0 ** (i + 1 - n) for i, (p, a, b, m) in enumerate(layers)]
        return jnp.asarray(scale, each[0].dtype) * jnp.sum(jnp.stack(each), axis=0), {}, {}

    paths = (features_of("student", students), features_of("teacher", teachers))
    return stateful(call, *paths, init=init, couples=True, scale=scale)


def paraphrase(*, teacher: str, factor: float = 0.5) -> Term:
    """Term that trains factor transfer's paraphraser on the teacher alone, before `ft`: an autoencoder of its map.

    mean (decode(encode(t)) - t)^2

    Args:
      teacher: Name of the teacher's feature [B, H, W, C].
      factor: Channels of the factor over C; the paper compares 0.5 to 4.

    Returns:
      A term with parameters `encoder` (what `ft` asks for) and `decoder`, each of `kernels` and `biases`.
    """

    def init(key: jax.Array, t: Any) -> PyTree:
        C, F = t.shape[-1], max(1, round(factor * t.shape[-1]))
        encoder, decoder = jax.random.split(key)
        return {"encoder": _factor_params(encoder, (C, C, F, F)), "decoder": _factor_params(decoder, (F, F, C, C))}

    def call(params: PyTree, t: jax.Array) -> jax.Array:
        code = regressors.ft_factor(t, **params["encoder"])
        # The last layer is linear, so that the whole range of the map can be reproduced.
        kernels, biases = params["decoder"]["kernels"], params["decoder"]["biases"]
        x = regressors.ft_factor(code, kernels[:-1], biases[:-1])
        return losses.hint(numerics.conv2d(x, kernels[-1], biases[-1]), t)

    return trained(call, f"teacher.{teacher}", init=init)


def ft(
    *,
    student: str,
    teacher: str,
    paraphraser: PyTree,
    loss: Callable[..., jax.Array] = losses.ft,
    where: str | None = None,
    **hyper: Any,
) -> Term:
    """Term of factor transfer: a translator of three 3x3 convolutions meets the trained paraphraser's factor.

    Args:
      student: Name of the student's feature [B, H, W, Cs].
      teacher: Name of the teacher's feature [B, H', W', Ct]; the larger map is pooled.
      paraphraser: The `encoder` that a term `paraphrase` trained; it stays as it is.
      loss: What compares the factors: the paper's, or `losses.ft_repdistiller` as the CIFAR-100 benchmark does.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of the loss.

    Returns:
      A term whose parameters are the translator's and whose state holds the paraphraser.
    """

    def init(key: jax.Array, s: Any, t: Any) -> Variables:
        C, F = s.shape[-1], paraphraser["kernels"][-1].shape[-1]
        return Variables(_factor_params(key, (C, C, F, F)), {"paraphraser": jax.tree.map(jnp.asarray, paraphraser)})

    def call(variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, **hyper: Any) -> _Found:
        params, state = variables
        s, t = numerics.match_resolution(s, t)
        factors = regressors.ft_factor(s, **params), regressors.ft_factor(t, **state["paraphraser"])
        return loss(*factors, **hyper), {}, {}

    paths = (f"student.{student}", f"teacher.{teacher}")
    return stateful(call, *paths, init=init, hyper_of=loss, where=where, **hyper)


def mgd(
    *,
    student: str,
    teacher: str,
    hidden: float = 0.15,
    over: str = "channels",
    where: str | None = None,
    **hyper: Any,
) -> Term:
    """Term of masked generative distillation: hide a share of the student's map at random, generate the teacher's.

    Args:
      student: Name of the student's feature [B, H, W, Cs].
      teacher: Name of the teacher's feature [B, H', W', Ct]; the larger map is pooled.
      hidden: Share that is hidden in each step; the paper has 0.15 for classification, 0.45 to 0.75 for dense tasks.
      over: "channels" (classification) or "positions" (detection, segmentation).
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of `losses.mgd`.

    Returns:
      A term with parameters `align` (a 1x1 convolution) and the generator's.

    Raises:
      ValueError: If `over` is something else.
    """
    if over not in ("channels", "positions"):
        raise ValueError(f'over={over!r} is not known: write "channels" or "positions".')
    align = linear()

    def init(key: jax.Array, s: Any, t: Any) -> Variables:
        first, second = jax.random.split(key)
        return Variables({"align": align.init(first, *_matched(s, t)), **_generator(second, t.shape[-1])}, {})

    def call(variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, **hyper: Any) -> _Found:
        p, (s, t) = variables.params, numerics.match_resolution(s, t)
        shape = (len(t), 1, 1, t.shape[-1]) if over == "channels" else (*t.shape[:3], 1)
        mask = jax.random.bernoulli(key, 1 - hidden, shape).astype(jnp.float32)
        made = networks.mgd_generator(align.apply(p["align"], s), mask, *(p[n] for n in _GENERATOR))
        return losses.mgd(made, t, **hyper), {}, {}

    paths = (f"student.{student}", f"teacher.{teacher}")
    return stateful(call, *paths, init=init, hyper_of=losses.mgd, where=where, **hyper)


def vitkd(
    *,
    student_low: Sequence[str],
    teacher_low: Sequence[str],
    student_high: str,
    teacher_high: str,
    lam: float = 0.5,
    where: str | None = None,
    **hyper: Any,
) -> Term:
    """Term of ViTKD: linear maps of the first two blocks' tokens, and generation of the last block's hidden ones.

    Args:
      student_low: Names of the tokens [B, N, Ds] of the student's first two blocks, without the class token.
      teacher_low: Names of the teacher's, [B, N, Dt].
      student_high: Name of the tokens of the student's last block.
      teacher_high: Name of the teacher's.
      lam: Share of the tokens that is hidden; exactly round(lam N) in each example.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of `losses.vitkd`.

    Returns:
      A term with parameters `align_low` (two), `align_high`, `mask_token` and the generator's.
    """
    align = linear()

    def init(key: jax.Array, low_s: list[Any], low_t: list[Any], high_s: Any, high_t: Any) -> Variables:
        keys = jax.random.split(key, len(low_s) + 3)
        lows = [align.init(k, s.shape, t.shape) for k, s, t in zip(keys[3:], low_s, low_t, strict=True)]
        token = 0.02 * jax.random.normal(keys[0], high_t.shape[-1:])
        high = align.init(keys[1], high_s.shape, high_t.shape)
        params = {"align_low": lows, "align_high": high, "mask_token": token, **_generator(keys[2], high_t.shape[-1])}
        return Variables(params, {})

    def call(
        variables: Variables, key: jax.Array, low_s: Any, low_t: Any, high_s: jax.Array, high_t: jax.Array, **hyper: Any
    ) -> _Found:
        p, (B, N, _) = variables.params, high_t.shape
        order = jnp.argsort(jax.random.uniform(key, (B, N)), axis=1)
        mask = order < round(lam * N)
        lows = jnp.stack([align.apply(a, x) for a, x in zip(p["align_low"], low_s, strict=True)], axis=1)
        made = align.apply(p["align_high"], high_s)
        made = networks.vitkd_generator(made, mask, p["mask_token"], *(p[n] for n in _GENERATOR))
        return losses.vitkd(lows, jnp.stack(low_t, axis=1), made, high_t, mask, lam=lam, **hyper), {}, {}

    paths = (features_of("student", student_low), features_of("teacher", teacher_low), f"student.{student_high}")
    return stateful(call, *paths, f"teacher.{teacher_high}", init=init, hyper_of=losses.vitkd, where=where, **hyper)


def srrl(*, student: str, teacher: str, classifier: Classifier, where: str | None = None, **hyper: Any) -> Term:
    """Term of SRRL: the student's map in the teacher's channels, and what the teacher's classifier makes of it.

    Args:
      student: Name of the student's last map [B, H, W, Cs].
      teacher: Name of the teacher's last map [B, H', W', Ct]; the larger one is pooled.
      classifier: The teacher's last layer.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of `losses.srrl`.

    Returns:
      A term whose parameters are those of `connector(relu=True)` and whose state holds the classifier.
    """
    project = connector(relu=True)

    def init(key: jax.Array, s: Any, t: Any, logits: Any) -> Variables:
        params = project.init(key, *_matched(s, t))
        return Variables(params, {"classifier": _frozen(classifier, t, logits)})

    def call(
        variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, logits: jax.Array, **hyper: Any
    ) -> _Found:
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
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of `losses.fgd`.

    Returns:
      A term with parameters `align`, `student` and `teacher`.
    """
    align = linear()

    def init(key: jax.Array, s: Any, t: Any, *rest: Any) -> PyTree:
        keys = jax.random.split(key, 3)
        blocks = {side: _context(k, t.shape[-1]) for side, k in zip(("student", "teacher"), keys[1:], strict=True)}
        return {"align": align.init(keys[0], s.shape, t.shape), **blocks}

    def call(p: PyTree, s: jax.Array, t: jax.Array, corners: jax.Array, *keep: jax.Array, **hyper: Any) -> jax.Array:
        options = {"valid": keep[0], **hyper} if keep else hyper
        made = align.apply(p["align"], s)
        return losses.fgd(made, t, corners, p["student"], p["teacher"], image_shape=image_shape, **options)

    paths = [f"student.{student}", f"teacher.{teacher}", f"batch.{boxes}", *([f"batch.{valid}"] if valid else [])]
    return trained(call, *paths, init=init, hyper_of=losses.fgd, where=where, **hyper)


_GENERATOR = ("kernel1", "bias1", "kernel2", "bias2")


def _generator(key: jax.Array, channels: int) -> PyTree:
    """Parameters of MGD's and ViTKD's two convolutions."""
    first, second = (conv_kernel(k, 3, channels, channels) for k in jax.random.split(key))
    return dict(zip(_GENERATOR, (first, jnp.zeros(channels), second, jnp.zeros(channels)), strict=True))


def _factor_params(key: jax.Array, sizes: Sequence[int]) -> PyTree:
    """Parameters of 3x3 convolutions from one number of channels to the next, for `regressors.ft_factor`."""
    return {"kernels": conv_chain(key, 3, sizes), "biases": [jnp.zeros(size) for size in sizes[1:]]}


def _context(key: jax.Array, channels: int) -> dense.Context:
    """FGD's context block, which starts as the identity."""
    mask, squeeze = jax.random.split(key)
    width = max(1, channels // 2)
    kernel = dense_params(mask, channels, 1)["kernel"][:, 0]
    zeros = (jnp.zeros((width, channels)), jnp.zeros(channels))
    fc1 = (dense_params(squeeze, channels, width)["kernel"], jnp.zeros(width))
    return dense.Context(kernel, jnp.zeros(()), *fc1, jnp.ones(width), jnp.zeros(width), *zeros)


def bottleneck(key: jax.Array, inputs: int, middle: int, outputs: int) -> dict[str, jax.Array]:
    """Parameters of SemCKD's 1x1, 3x3 and 1x1 convolutions, for `networks.semckd_regressor`."""
    keys = jax.random.split(key, 3)
    sizes = ((1, inputs, middle), (3, middle, middle), (1, middle, outputs))
    kernels = [conv_kernel(k, *size) for k, size in zip(keys, sizes, strict=True)]
    norms = {f"{name}{i}": value for i in (1, 2) for name, value in norm_params(middle).items()}
    return {**{f"kernel{i}": kernel for i, kernel in enumerate(kernels, 1)}, **norms}


def _connectors(key: jax.Array, students: Sequence[Any], teachers: Sequence[Any]) -> list[PyTree]:
    """Parameters of a connector for each pair of layers."""
    _check_counts(students, teachers)
    pairs = zip(jax.random.split(key, len(students)), students, teachers, strict=True)
    return [connector().init(k, *_matched(s, t)) for k, s, t in pairs]


def _match_all(students: Sequence[jax.Array], teachers: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
    """The maps after `match_resolution`, pair by pair."""
    pairs = [numerics.match_resolution(s, t) for s, t in zip(students, teachers, strict=True)]
    return [s for s, _ in pairs], [t for _, t in pairs]


def _check_counts(students: Sequence[Any], teachers: Sequence[Any], *others: Sequence[Any]) -> None:
    counts = [len(x) for x in (students, teachers, *others)]
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            f"this term compares layers in pairs but was given {counts[0]} of the student and {counts[1:]} of the "
            "rest: give as many of each, at least one."
        )


def _matched(s: Any, t: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes after `match_resolution`."""
    return tuple(tuple(x.shape) for x in jax.eval_shape(numerics.match_resolution, s, t))  # type: ignore[return-value]


def _frozen(classifier: Classifier, t: Any, logits: Any) -> tuple[jax.Array, jax.Array]:
    """The teacher's classifier as float32 arrays, of the teacher's channels and classes."""
    kernel, bias = (jnp.asarray(a, jnp.float32) for a in classifier)
    if kernel.shape != (t.shape[-1], logits.shape[-1]) or bias.shape != logits.shape[-1:]:
        raise ValueError(
            f"the classifier has shapes {kernel.shape} and {bias.shape} but the teacher's map has {t.shape[-1]} "
            f"channels and its logits {logits.shape[-1]} classes: give the teacher's last layer, kernel [C, K] first."
        )
    return kernel, bias
