"""Pairs of networks and random images that several benchmarks use."""

import numpy as np

from jaxkd import augment, models

T, ALPHA, RATE, MOMENTUM = 4.0, 0.1, 0.01, 0.9
"""Temperature, weight of the labels, and SGD of the step that is compared with PyTorch's."""

WAYS = {"eager": None, "compile": "default", "reduce-overhead": "reduce-overhead", "max-autotune": "max-autotune"}
"""Way to run PyTorch -> mode of `torch.compile`, None for no compiling. "reduce-overhead" has CUDA graphs."""


def sizes(fast):
    """Flags of `networks`; larger on an accelerator."""
    return dict(
        pairs=(("resnet", "bert"), "teachers and students", ("resnet", "bert")),
        depths=((56, 20), "depths of the residual networks, teacher and student"),
        layers=((12, 6), "layers of the transformers, teacher and student"),
        width=(768 if fast else 128, "hidden size of the transformers"),
        heads=(12 if fast else 4, "attention heads of the transformers"),
        vocabulary=(30522 if fast else 2000, "vocabulary of the transformers, in tokens"),
        length=(128, "length of an example, in tokens"),
    )


SMALL = {"pairs": ("bert",), "layers": (2, 1), "width": 16, "heads": 2, "vocabulary": 50, "length": 8}


def networks(pair, config, classes=100, **more):
    """(teacher, student); `more` are options of the transformers."""
    if pair == "resnet":
        return [models.resnet(classes, depth=d) for d in config.depths]
    same = {"vocabulary": config.vocabulary, "width": config.width, "heads": config.heads, "dropout": 0.0, **more}
    return [models.bert(classes, layers=n, **same) for n in config.layers]


def pictures(examples, classes):
    """Arrays of 32x32 images and labels, and a function that makes their views on the device."""
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (examples, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, classes, examples),
    }
    moves = (augment.to_float(), augment.random_crop(4), augment.flip(), augment.normalize(0.5, 0.25))
    return arrays, augment.augment_batch(augment.compose(*moves), seed=0)
