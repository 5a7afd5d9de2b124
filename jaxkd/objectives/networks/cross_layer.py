"""Networks of the methods that compare several layers at once: SemCKD and ReviewKD."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.objectives.networks.core import Network, Shape, conv_kernel, dense_params, norm_params, width_or
from jaxkd.types import PyTree

_BOTTLENECK = ("kernel1", "scale1", "bias1", "kernel2", "scale2", "bias2", "kernel3")
_EMBEDDING = ("kernel1", "bias1", "kernel2", "bias2")
_FUSION = ("kernel1", "scale1", "bias1", "kernel2", "scale2", "bias2")


def bottleneck() -> Network:
    """SemCKD's projection of one student layer to one teacher layer, which couples the batch.

    conv1x1(relu(BN(conv3x3(relu(BN(conv1x1(f)))))))

    Returns:
      A network with parameters `kernel1` [1, 1, Cs, M], `kernel2` [3, 3, M, M], `kernel3` [1, 1, M, Ct] and `scale1`,
      `bias1`, `scale2`, `bias2` [M] of two batch norms, M = 2 Ct, that turns maps [B, H, W, Cs] into [B, H, W, Ct].

    Reference:
      Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, https://arxiv.org/abs/2012.03236
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        inputs, middle, outputs = own[-1], 2 * other[-1], other[-1]
        sizes = ((1, inputs, middle), (3, middle, middle), (1, middle, outputs))
        kernels = [conv_kernel(k, *size) for k, size in zip(jax.random.split(key, 3), sizes, strict=True)]
        norms = {f"{name}{i}": value for i in (1, 2) for name, value in norm_params(middle).items()}
        return {**{f"kernel{i}": kernel for i, kernel in enumerate(kernels, 1)}, **norms}

    def apply(params: PyTree, x: ArrayLike) -> jax.Array:
        y, k1, g1, b1, k2, g2, b2, k3 = numerics.promote(x, *(params[name] for name in _BOTTLENECK))
        y = jax.nn.relu(numerics.batch_norm(numerics.conv2d(y, k1), g1, b1))
        y = jax.nn.relu(numerics.batch_norm(numerics.conv2d(y, k2), g2, b2))
        return numerics.conv2d(y, k3)

    return Network(init, apply, couples=True)


def embedding() -> Network:
    """SemCKD's query (student layer) or key (teacher layer), from similarities within the batch, which it couples.

    u / ||u||_2,  u = relu(M W1 + b1) W2 + b2,  M = F F^T with F the flat features [B, D]

    Returns:
      A network with parameters `kernel1` [B, h], `bias1` [h], `kernel2` [h, d], `bias2` [d], h = 2 d, d = B // 4, that
      turns features [B, ...] into unit vectors [B, d], 0 where u = 0. A row of M has B entries, so the batch size is
      fixed: `init` raises ValueError below 4, `apply` if the batch has another size.

    Reference:
      Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, https://arxiv.org/abs/2012.03236
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        batch = own[0]
        if batch < 4:
            raise ValueError(
                f"SemCKD computes attention from similarities within the batch, but the batch has {batch} examples: "
                "give at least 4."
            )
        first, second = jax.random.split(key)
        one, two = dense_params(first, batch, 2 * (batch // 4)), dense_params(second, 2 * (batch // 4), batch // 4)
        return dict(zip(_EMBEDDING, (one["kernel"], one["bias"], two["kernel"], two["bias"]), strict=True))

    def apply(params: PyTree, x: ArrayLike) -> jax.Array:
        y, k1, b1, k2, b2 = numerics.promote(x, *(params[name] for name in _EMBEDDING))
        if k1.shape[0] != y.shape[0]:
            raise ValueError(
                f"features have shape {y.shape} but kernel1 {k1.shape} was made for batches of {k1.shape[0]}: keep the "
                "batch size and drop the remainder."
            )
        flat = y.reshape(y.shape[0], -1)
        similarities = jnp.einsum("bi,ci->bc", flat, flat, precision="highest")
        return numerics.unit(jax.nn.relu(similarities @ k1 + b1[None]) @ k2 + b2[None])

    return Network(init, apply, couples=True)


def fusion(*, middle: int | None = None, attention: bool = True) -> Network:
    """ReviewKD's attention-based fusion of one student stage with the next deeper one; couples the batch.

    x = BN(conv1x1(f));  x <- a_1 x + a_2 y with (a_1, a_2) = sigmoid(conv1x1([x, y])), y = deeper at x's resolution;
    output = BN(conv3x3(x))

    Args:
      middle: Channels M of x; those of the result if None.
      attention: Whether there is a deeper stage, so that the network has the parameters of the attention.

    Returns:
      A network with parameters `kernel1` [1, 1, Cs, M], `kernel2` [3, 3, M, Ct], `scale1`, `bias1` [M], `scale2`,
      `bias2` [Ct] and, with attention, `attention_kernel` [1, 1, 2 M, 2], `attention_bias` [2]. Its `apply` takes the
      params, a map [B, H, W, Cs], and the x of the next deeper stage [B, h, w, M], or None at the deepest; it returns
      the output [B, H, W, Ct] and x [B, H, W, M] for the next shallower stage, and raises ValueError if there is a
      deeper stage but no attention.

    Reference:
      Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, https://arxiv.org/abs/2104.09044
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        keys, width = jax.random.split(key, 3), width_or(middle, other[-1], "middle")
        params = {
            "kernel1": conv_kernel(keys[0], 1, own[-1], width),
            "kernel2": conv_kernel(keys[1], 3, width, other[-1]),
        }
        params |= {f"{n}{i}": v for i, c in ((1, width), (2, other[-1])) for n, v in norm_params(c).items()}
        if not attention:
            return params
        return {**params, "attention_kernel": conv_kernel(keys[2], 1, 2 * width, 2), "attention_bias": jnp.zeros(2)}

    return Network(init, _fuse, couples=True)


def _fuse(params: PyTree, x: ArrayLike, deeper: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Output of a stage, and what it leaves for the next shallower one."""
    f, k1, g1, b1, k2, g2, b2 = numerics.promote(x, *(params[name] for name in _FUSION))
    y = numerics.batch_norm(numerics.conv2d(f, k1), g1, b1)
    if deeper is not None:
        if "attention_kernel" not in params or "attention_bias" not in params:
            raise ValueError("fusion with a deeper stage needs attention_kernel and attention_bias: give both.")
        d, k, b = numerics.promote(deeper, params["attention_kernel"], params["attention_bias"])
        d = jax.image.resize(d, y.shape, "nearest")
        a = jax.nn.sigmoid(numerics.conv2d(jnp.concatenate([y, d], axis=-1), k, b))
        y = a[..., :1] * y + a[..., 1:] * d
    return numerics.batch_norm(numerics.conv2d(y, k2), g2, b2), y
