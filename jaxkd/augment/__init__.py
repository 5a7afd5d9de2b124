"""Augmentations: pure `(key, example) -> example`, run on the device, one key for each example.

An example is a dict without a batch axis; `image` [H, W, C] is changed, everything else passes through untouched.
`jaxkd.augment.audio` changes `audio` [L] instead, and `log_mel` [F, M], which is made of it.
Pictures are uint8 until `to_float()`, then floats in [0, 1] until `normalize(mean, std)`, which comes last.
"""

from jaxkd.augment.audio import LogMel, add_noise, change_speed, log_mel, spec_augment, to_log_mel
from jaxkd.augment.boxes import flip_with_boxes
from jaxkd.augment.channels import grey_to_rgb, rgb_to_grey
from jaxkd.augment.core import Augmentation, Example, Mix, augment_batch, compose, two_views
from jaxkd.augment.interactions import draw_items
from jaxkd.augment.masks import flip_with_mask
from jaxkd.augment.mixes import cutmix, mixup
from jaxkd.augment.pictures import (
    center_crop,
    color_jitter,
    cutout,
    flip,
    normalize,
    rand_augment,
    random_crop,
    random_resized_crop,
    to_float,
)

__all__ = [
    "Augmentation",
    "Example",
    "LogMel",
    "Mix",
    "add_noise",
    "augment_batch",
    "center_crop",
    "change_speed",
    "color_jitter",
    "compose",
    "cutmix",
    "cutout",
    "draw_items",
    "flip",
    "flip_with_boxes",
    "flip_with_mask",
    "grey_to_rgb",
    "log_mel",
    "mixup",
    "normalize",
    "rand_augment",
    "random_crop",
    "random_resized_crop",
    "rgb_to_grey",
    "spec_augment",
    "to_float",
    "to_log_mel",
    "two_views",
]
