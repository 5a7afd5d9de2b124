"""timm's networks by name: `timm_network` reads a name and the arguments of timm's `create_model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.pytorch.published import Published
from jaxkd.pytorch.timm_convolutional import CONVOLUTIONAL, convolutional
from jaxkd.pytorch.timm_transformers import transformer, transformer_arguments


def timm_network(name: str, **arguments: Any) -> Published:
    """A network of timm by its name, with arguments of timm's `create_model`.

    `timm_network("vit_small_patch14_reg4_dinov2", img_size=224)` is read by the parts of its name. Images decide their
    own size and channels here, and the number of classes is given to `make`; 0 makes a network without a last layer.

    Args:
      name: Name of a vision transformer (ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, EVA-02, FlexiViT), ResNet, MobileNet,
        MnasNet, EfficientNet or ConvNeXt.
      **arguments: Arguments of timm's `create_model`, but for `pretrained` and `num_classes`.

    Returns:
      Its maker and the rules of its tensors' names.

    Raises:
      ValueError: If the name or an argument is not known.

    Reference:
      Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models
    """
    known = transformer_arguments(name)
    if known is not None:
        known = {key: value for key, value in known.items() if key != "epsilon" or "norm_layer" not in arguments}
        return transformer(name, known | arguments)
    if name in CONVOLUTIONAL:
        return convolutional(name, arguments)
    raise ValueError(
        f"{name!r} is no network of timm's that is known here: choose a vision transformer by its name, such as "
        f"vit_small_patch14_dinov2, or one of {', '.join(CONVOLUTIONAL)}."
    )


_PATCHES = (("tiny", 16), ("small", 16), ("small", 32), ("base", 16), ("base", 32), ("large", 16))
_DEIT = (("tiny", 224), ("small", 224), ("base", 224), ("base", 384))
_NAMES = (
    *CONVOLUTIONAL,
    *(f"vit_{size}_patch{patch}_{pixels}" for size, patch in _PATCHES for pixels in (224, 384)),
    *(f"deit_{size}_{infix}patch16_{pixels}" for size, pixels in _DEIT for infix in ("", "distilled_")),
    *(f"deit3_{size}_patch16_224" for size in ("small", "medium", "base")),
    *(f"vit_{size}_patch14_{infix}dinov2" for size in ("small", "base", "large") for infix in ("", "reg4_")),
    *(f"vit_{size}_patch16_dinov3" for size in ("small", "small_plus", "base", "large")),
    *(f"eva02_{size}_patch14_{pixels}" for size in ("tiny", "small") for pixels in (224, 336)),
)
TIMM: Mapping[str, Published] = {name: timm_network(name) for name in _NAMES}
"""timm's networks (https://github.com/huggingface/pytorch-image-models) that are chosen by name; `timm_network` has
more."""
