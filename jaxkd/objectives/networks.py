"""The learned maps that some feature losses define between a student and a teacher, as functions of their parameters.

Feature maps are [B, H, W, C], convolution kernels [h, w, in, out], dense kernels [in, out]. What holds a batch norm
normalises with the statistics of the batch, so it couples the batch.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics


def mgd_generator(
    feature: ArrayLike, mask: ArrayLike, kernel1: ArrayLike, bias1: ArrayLike, kernel2: ArrayLike, bias2: ArrayLike
) -> jax.Array:
    """MGD's generation of a teacher's map from a masked student's.

    conv3x3(relu(conv3x3(mask * f)))

    Args:
      feature: [B, H, W, C] floating, already projected to the teacher's channels.
      mask: 1 keeps, 0 hides; [B, 1, 1, C] (classification) or [B, H, W, 1] (detection).
      kernel1: [3, 3, C, C].
      bias1: [C].
      kernel2: [3, 3, C, C].
      bias2: [C].

    Returns:
      [B, H, W, C], for `mgd`.

    Reference:
      Yang et al., "Masked Generative Distillation", ECCV 2022, https://arxiv.org/abs/2205.01529
    """
    x, m, *parameters = numerics.promote(feature, mask, kernel1, bias1, kernel2, bias2)
    return _generate(x * m, *parameters)


def vitkd_generator(
    tokens: ArrayLike,
    mask: ArrayLike,
    mask_token: ArrayLike,
    kernel1: ArrayLike,
    bias1: ArrayLike,
    kernel2: ArrayLike,
    bias2: ArrayLike,
) -> jax.Array:
    """ViTKD's generation of a teacher's last tokens from a masked student's, laid out as a square map.

    conv3x3(relu(conv3x3(f, with f = mask_token where mask = 1)))

    Args:
      tokens: [B, N, D] floating, N a square (no class token), already projected to the teacher's width.
      mask: [B, N], 1 (or True) where a token is hidden.
      mask_token: [D].
      kernel1: [3, 3, D, D].
      bias1: [D].
      kernel2: [3, 3, D, D].
      bias2: [D].

    Returns:
      [B, N, D], for `vitkd`.

    Raises:
      ValueError: If N is not a square.

    Reference:
      Yang et al., "ViTKD: Practical Guidelines for ViT feature knowledge distillation", 2022,
      https://arxiv.org/abs/2209.02432
    """
    x, token, *parameters = numerics.promote(tokens, mask_token, kernel1, bias1, kernel2, bias2)
    batch, count, width = x.shape
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"tokens have shape {x.shape}, {count} of them are not a square map: drop the class token.")
    hidden = jnp.asarray(mask).astype(bool)[..., None]
    x = jnp.where(hidden, jnp.expand_dims(token, (0, 1)), x)
    return _generate(x.reshape(batch, side, side, width), *parameters).reshape(x.shape)


def _generate(x: jax.Array, kernel1: jax.Array, bias1: jax.Array, kernel2: jax.Array, bias2: jax.Array) -> jax.Array:
    """Two convolutions with a ReLU between them."""
    return numerics.conv2d(jax.nn.relu(numerics.conv2d(x, kernel1, bias1)), kernel2, bias2)


def ickd_embedding(feature: ArrayLike, kernel: ArrayLike, scale: ArrayLike, bias: ArrayLike) -> jax.Array:
    """ICKD's embedding of a student's map in the teacher's channels: 1x1 convolution and batch norm; couples the batch.

    Args:
      feature: [B, H, W, Cs] floating.
      kernel: [1, 1, Cs, C].
      scale: [C].
      bias: [C].

    Returns:
      [B, H, W, C], for `ickd`.

    Reference:
      Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021,
      https://arxiv.org/abs/2202.03680
    """
    x, k, g, b = numerics.promote(feature, kernel, scale, bias)
    return numerics.batch_norm(numerics.conv2d(x, k), g, b)


def srrl_connector(feature: ArrayLike, kernel: ArrayLike, scale: ArrayLike, bias: ArrayLike) -> jax.Array:
    """SRRL's connector to the teacher's channels: 1x1 convolution, batch norm, ReLU; couples the batch.

    Args:
      feature: [B, H, W, Cs] floating.
      kernel: [1, 1, Cs, C].
      scale: [C].
      bias: [C].

    Returns:
      [B, H, W, C], for `reused_classifier` and `srrl`.

    Reference:
      Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021,
      https://openreview.net/forum?id=ZzwDy_wiWv
    """
    return jax.nn.relu(ickd_embedding(feature, kernel, scale, bias))


def semckd_regressor(
    feature: ArrayLike,
    kernel1: ArrayLike,
    scale1: ArrayLike,
    bias1: ArrayLike,
    kernel2: ArrayLike,
    scale2: ArrayLike,
    bias2: ArrayLike,
    kernel3: ArrayLike,
) -> jax.Array:
    """SemCKD's projection of one student layer to one teacher layer: a bottleneck; couples the batch.

    conv1x1(relu(BN(conv3x3(relu(BN(conv1x1(f)))))))

    Args:
      feature: [B, H, W, Cs] floating.
      kernel1: [1, 1, Cs, M]; the authors have M = 2 Ct.
      scale1: [M].
      bias1: [M].
      kernel2: [3, 3, M, M].
      scale2: [M].
      bias2: [M].
      kernel3: [1, 1, M, Ct].

    Returns:
      [B, H, W, Ct].

    Reference:
      Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, https://arxiv.org/abs/2012.03236
    """
    x, k1, g1, b1, k2, g2, b2, k3 = numerics.promote(feature, kernel1, scale1, bias1, kernel2, scale2, bias2, kernel3)
    x = jax.nn.relu(numerics.batch_norm(numerics.conv2d(x, k1), g1, b1))
    x = jax.nn.relu(numerics.batch_norm(numerics.conv2d(x, k2), g2, b2))
    return numerics.conv2d(x, k3)


def semckd_embedding(
    feature: ArrayLike, kernel1: ArrayLike, bias1: ArrayLike, kernel2: ArrayLike, bias2: ArrayLike
) -> jax.Array:
    """SemCKD's query (student layer) or key (teacher layer), from similarities within the batch; couples the batch.

    u / ||u||_2,  u = relu(M W1 + b1) W2 + b2,  M = F F^T with F the flat features [B, D]

    Args:
      feature: [B, ...] floating, one layer.
      kernel1: [B, h]; a row of M has B entries, so the batch size is fixed.
      bias1: [h].
      kernel2: [h, d].
      bias2: [d].

    Returns:
      Unit vectors [B, d]; 0 where u = 0.

    Raises:
      ValueError: If the batch has another size than the kernel was made for.

    Reference:
      Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, https://arxiv.org/abs/2012.03236
    """
    x, k1, b1, k2, b2 = numerics.promote(feature, kernel1, bias1, kernel2, bias2)
    if k1.shape[0] != x.shape[0]:
        raise ValueError(
            f"features have shape {x.shape} but kernel1 {k1.shape} was made for batches of {k1.shape[0]}: keep the "
            "batch size and drop the remainder."
        )
    flat = x.reshape(x.shape[0], -1)
    similarities = jnp.einsum("bi,ci->bc", flat, flat, precision="highest")
    return numerics.unit(jax.nn.relu(similarities @ k1 + b1[None]) @ k2 + b2[None])


def simkd_projector(
    feature: ArrayLike,
    kernel1: ArrayLike,
    scale1: ArrayLike,
    bias1: ArrayLike,
    kernel2: ArrayLike,
    scale2: ArrayLike,
    bias2: ArrayLike,
    kernel3: ArrayLike,
    scale3: ArrayLike,
    bias3: ArrayLike,
) -> jax.Array:
    """SimKD's projector to the teacher's last map: SemCKD's bottleneck, batch norm, ReLU; couples the batch.

    relu(BN(conv1x1(relu(BN(conv3x3(relu(BN(conv1x1(f)))))))))

    Args:
      feature: [B, H, W, Cs] floating, after `numerics.match_resolution`.
      kernel1: [1, 1, Cs, M]; the authors have M = Ct / 2.
      scale1: [M].
      bias1: [M].
      kernel2: [3, 3, M, M].
      scale2: [M].
      bias2: [M].
      kernel3: [1, 1, M, Ct].
      scale3: [Ct].
      bias3: [Ct].

    Returns:
      [B, H, W, Ct], for `simkd` and `reused_classifier`.

    Reference:
      Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
      https://arxiv.org/abs/2203.14001
    """
    x = semckd_regressor(feature, kernel1, scale1, bias1, kernel2, scale2, bias2, kernel3)
    x, g3, b3 = numerics.promote(x, scale3, bias3)
    return jax.nn.relu(numerics.batch_norm(x, g3, b3))


def review_fusion(
    feature: ArrayLike,
    deeper: ArrayLike | None,
    kernel1: ArrayLike,
    scale1: ArrayLike,
    bias1: ArrayLike,
    kernel2: ArrayLike,
    scale2: ArrayLike,
    bias2: ArrayLike,
    attention_kernel: ArrayLike | None = None,
    attention_bias: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """ReviewKD's attention-based fusion of one student stage with what the deeper stages left; couples the batch.

    x = BN(conv1x1(f));  x <- a_1 x + a_2 y with (a_1, a_2) = sigmoid(conv1x1([x, y])), y = deeper at x's resolution;
    output = BN(conv3x3(x))

    Args:
      feature: [B, H, W, Cs] floating.
      deeper: [B, h, w, M], the residual of the next deeper stage, or None at the deepest.
      kernel1: [1, 1, Cs, M].
      scale1: [M].
      bias1: [M].
      kernel2: [3, 3, M, Ct].
      scale2: [Ct].
      bias2: [Ct].
      attention_kernel: [1, 1, 2 M, 2]; needed with `deeper`.
      attention_bias: [2]; needed with `deeper`.

    Returns:
      The output [B, H, W, Ct], for `review_hcl`, and the residual x [B, H, W, M] for the next shallower stage.

    Raises:
      ValueError: If there is a deeper stage but no attention.

    Reference:
      Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, https://arxiv.org/abs/2104.09044
    """
    f, k1, g1, b1, k2, g2, b2 = numerics.promote(feature, kernel1, scale1, bias1, kernel2, scale2, bias2)
    x = numerics.batch_norm(numerics.conv2d(f, k1), g1, b1)
    if deeper is not None:
        if attention_kernel is None or attention_bias is None:
            raise ValueError("fusion with a deeper stage needs attention_kernel and attention_bias: give both.")
        y, k, b = numerics.promote(deeper, attention_kernel, attention_bias)
        y = jax.image.resize(y, x.shape, "nearest")
        a = jax.nn.sigmoid(numerics.conv2d(jnp.concatenate([x, y], axis=-1), k, b))
        x = a[..., :1] * x + a[..., 1:] * y
    return numerics.batch_norm(numerics.conv2d(x, k2), g2, b2), x
