"""Published results of the CIFAR-100 distillation benchmark, none of which is from this library.

Accuracies are on the test images, in percent.
LAST: of the last epoch, the README of Tian, Krishnan, Isola, https://github.com/HobbitLong/RepDistiller.
BEST: of the best epoch, chosen on the test images: DKD from https://github.com/megvii-research/mdistiller (README; five
runs), the others from https://github.com/sunshangquan/logit-standardization-KD (README).
MLKD's are of 480 epochs, with a second, stronger view of each image.
"""

PAIRS = (
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
    ("vgg13", "MobileNetV2"),
    ("ResNet50", "MobileNetV2"),
    ("ResNet50", "vgg8"),
    ("resnet32x4", "ShuffleV1"),
    ("resnet32x4", "ShuffleV2"),
    ("wrn_40_2", "ShuffleV1"),
)
"""Teacher and student, in the order of the README's columns."""

_LAST = {
    "teacher": (75.61, 75.61, 72.34, 74.31, 74.31, 79.42, 74.64, 74.64, 79.34, 79.34, 79.42, 79.42, 75.61),
    "alone": (73.26, 71.98, 69.06, 69.06, 71.14, 72.50, 70.36, 64.60, 64.60, 70.36, 70.50, 71.82, 70.50),
    "kd": (74.92, 73.54, 70.66, 70.67, 73.08, 73.33, 72.98, 67.37, 67.35, 73.81, 74.07, 74.45, 74.83),
    "fitnet": (73.58, 72.24, 69.21, 68.99, 71.06, 73.50, 71.02, 64.14, 63.16, 70.69, 73.59, 73.54, 73.73),
    "at": (74.08, 72.77, 70.55, 70.22, 72.31, 73.44, 71.43, 59.40, 58.58, 71.84, 71.73, 72.73, 73.32),
    "sp": (73.83, 72.43, 69.67, 70.04, 72.69, 72.94, 72.68, 66.30, 68.08, 73.34, 73.48, 74.56, 74.52),
    "cc": (73.56, 72.21, 69.63, 69.48, 71.48, 72.97, 70.71, 64.86, 65.43, 70.25, 71.14, 71.29, 71.38),
    "vid": (74.11, 73.30, 70.38, 70.16, 72.61, 73.09, 71.23, 65.56, 67.57, 70.30, 73.38, 73.40, 73.61),
    "rkd": (73.35, 72.22, 69.61, 69.25, 71.82, 71.90, 71.48, 64.52, 64.43, 71.50, 72.28, 73.21, 72.21),
    "pkt": (74.54, 73.45, 70.34, 70.25, 72.61, 73.64, 72.88, 67.13, 66.52, 73.01, 74.10, 74.69, 73.89),
    "ab": (72.50, 72.38, 69.47, 69.53, 70.98, 73.17, 70.94, 66.06, 67.20, 70.65, 73.55, 74.31, 73.34),
    "ft": (73.25, 71.59, 69.84, 70.22, 72.37, 72.86, 70.58, 61.78, 60.99, 70.29, 71.75, 72.50, 72.03),
    "fsp": (72.91, None, 69.95, 70.11, 71.89, 72.62, 70.23, None, None, None, None, None, None),
    "nst": (73.68, 72.24, 69.60, 69.53, 71.96, 73.30, 71.53, 58.16, 64.96, 71.28, 74.12, 74.68, 74.89),
    "crd": (75.48, 74.14, 71.16, 71.46, 73.48, 75.51, 73.94, 69.73, 69.11, 74.30, 75.11, 75.65, 76.05),
}
LAST = {name: dict(zip(PAIRS, row, strict=True)) for name, row in _LAST.items()}
BEST = {
    "dkd": {
        ("resnet56", "resnet20"): 71.97,
        ("resnet110", "resnet32"): 74.11,
        ("resnet32x4", "resnet8x4"): 76.32,
        ("wrn_40_2", "wrn_16_2"): 76.23,
        ("wrn_40_2", "wrn_40_1"): 74.81,
        ("vgg13", "vgg8"): 74.68,
        ("resnet32x4", "ShuffleV1"): 76.45,
        ("wrn_40_2", "ShuffleV1"): 76.70,
        ("vgg13", "MobileNetV2"): 69.71,
        ("ResNet50", "MobileNetV2"): 70.35,
        ("resnet32x4", "ShuffleV2"): 77.07,
    },
    "kd_ls": {
        ("resnet32x4", "resnet8x4"): 76.62,
        ("vgg13", "vgg8"): 74.36,
        ("wrn_40_2", "wrn_40_1"): 74.37,
        ("wrn_40_2", "wrn_16_2"): 76.11,
        ("resnet56", "resnet20"): 71.43,
        ("resnet110", "resnet32"): 74.17,
        ("resnet110", "resnet20"): 71.48,
    },
    "ctkd": {
        ("resnet32x4", "resnet8x4"): 73.39,
        ("vgg13", "vgg8"): 73.52,
        ("wrn_40_2", "wrn_40_1"): 73.93,
        ("wrn_40_2", "wrn_16_2"): 75.45,
        ("resnet56", "resnet20"): 71.19,
        ("resnet110", "resnet32"): 73.52,
        ("resnet110", "resnet20"): 70.99,
    },
    "mlkd": {
        ("resnet32x4", "resnet8x4"): 77.08,
        ("vgg13", "vgg8"): 75.18,
        ("wrn_40_2", "wrn_40_1"): 75.35,
        ("wrn_40_2", "wrn_16_2"): 76.63,
        ("resnet56", "resnet20"): 72.19,
        ("resnet110", "resnet32"): 74.11,
        ("resnet110", "resnet20"): 71.89,
    },
}
"""Method -> pair -> accuracy."""


def methods_of(pair):
    """The methods with published results for a pair, in the order of the tables; an error if there are none."""
    names = [name for name in {**LAST, **BEST} if name not in ("teacher", "alone") and figures(name, pair)]
    if not names:
        raise ValueError(f"nobody published {' -> '.join(pair)}: leave --table out and name --methods.")
    return names


def figures(name, pair):
    """A method's published results for a pair, by the table's column."""
    found = {"published": LAST.get(name, {}).get(pair), "later": BEST.get(name, {}).get(pair)}
    return {column: f"{value:.2f}" for column, value in found.items() if value is not None}
