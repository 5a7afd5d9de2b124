"""What several benchmarks work on: pairs of networks, and pictures read through the pipeline."""

import numpy as np

from jaxkd import augment, models


def sizes(fast):
    """Flags of `networks`; larger on an accelerator."""
    return dict(
        pairs=(("resnet", "bert"), "which teachers and students: resnet, bert"),
        depths=((56, 20), "of the residual networks, teacher and student"),
        layers=((12, 6), "of the transformers, teacher and student"),
        width=(768 if fast else 128, "hidden size of the transformers"),
        heads=(12 if fast else 4, "heads of their attention"),
        vocabulary=(30522 if fast else 2000, "tokens they know"),
        length=(128, "tokens of an example"),
    )


SMALL = {"pairs": ("bert",), "layers": (2, 1), "width": 16, "heads": 2, "vocabulary": 50, "length": 8}


def networks(pair, config, classes=100, **more):
    """(teacher, student); `more` are options of the transformers."""
    if pair == "resnet":
        return [models.resnet(classes, depth=d) for d in config.depths]
    same = {"vocabulary": config.vocabulary, "width": config.width, "heads": config.heads, "dropout": 0.0, **more}
    return [models.bert(classes, layers=n, **same) for n in config.layers]


def pictures(examples, classes):
    """Arrays of 32x32 images and labels, and how their views are made on the device."""
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (examples, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, classes, examples),
    }
    moves = (augment.to_float(), augment.random_crop(4), augment.flip(), augment.normalize(0.5, 0.25))
    return arrays, augment.augment_batch(augment.compose(*moves), seed=0)
