"""Weights that were tuned for single pairs, as (teacher, student) -> value; other pairs have the method's usual one."""

BETA = {
    ("resnet56", "resnet20"): 2.0,
    ("resnet110", "resnet32"): 2.0,
    ("wrn_40_2", "wrn_16_2"): 6.0,
    ("wrn_40_2", "wrn_40_1"): 6.0,
    ("vgg13", "vgg8"): 6.0,
    ("vgg13", "MobileNetV2"): 6.0,
}
"""DKD's beta where it is not 8, from https://github.com/megvii-research/mdistiller."""
REVIEW = {
    ("resnet56", "resnet20"): 0.6,
    ("wrn_40_2", "wrn_16_2"): 5.0,
    ("wrn_40_2", "wrn_40_1"): 5.0,
    ("wrn_40_2", "ShuffleV1"): 5.0,
    ("resnet32x4", "resnet8x4"): 5.0,
    ("resnet32x4", "ShuffleV1"): 5.0,
    ("resnet32x4", "ShuffleV2"): 8.0,
}
"""The weight of knowledge review where it is not 1, from https://github.com/dvlab-research/ReviewKD."""
CAT = {
    ("resnet56", "resnet20"): (0.7, 2, False),
    ("resnet110", "resnet32"): (1.8, 2, False),
    ("resnet32x4", "resnet8x4"): (15.0, 2, False),
    ("wrn_40_2", "wrn_16_2"): (12.0, 2, False),
    ("wrn_40_2", "wrn_40_1"): (1.5, 2, False),
    ("vgg13", "vgg8"): (4.5, 2, False),
    ("vgg13", "MobileNetV2"): (15.0, 2, True),
    ("ResNet50", "MobileNetV2"): (40.0, 2, True),
    ("wrn_40_2", "ShuffleV1"): (80.0, 4, True),
    ("resnet32x4", "ShuffleV1"): (600.0, 4, True),
    ("resnet32x4", "ShuffleV2"): (600.0, 4, True),
}
"""CAT-KD's weight, resolution and whether maps are normalised, from https://github.com/GzyAftermath/CAT-KD,
configs/cifar100/CAT_KD; (1, 2, True) for pairs that are not there, which nobody tuned."""
