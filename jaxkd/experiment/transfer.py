"""What a transfer experiment begins with: two data sets, and optimizers that spare what was learnt on the first."""

import optax

from jaxkd import data, reports
from jaxkd.train import optimizers

COLUMNS = {key: header for key, header in reports.RESULTS.items() if key not in ("agreement", "kl")}
STAGES = ("stage1", "stage2", "stage3")
GROUPS = (r"head|term/", r"stage[34]", r"stage2", r".")  # of layers, deepest first


def opened(config):
    """Source to pre-train on, few labels of the target, its validation and test splits."""
    options = {"data_dir": config.data_dir, "image_size": config.image_size}
    first, target = config.source_classes, config.target or config.source
    pretrain = data.in_memory(data.open_source(config.source, config.source_split, **options))
    if first is not None:
        pretrain = data.of_classes(pretrain, range(first))
    splits = [
        data.in_memory(data.open_source(target, split, **options))
        for split in (config.target_split, config.validation_split, config.test_split)
    ]
    if last := config.target_classes:
        splits = [data.of_classes(s, range(s.num_classes - last, s.num_classes)) for s in splits]
    if pretrain.image_shape != splits[0].image_shape:
        raise ValueError(
            f"images are {pretrain.image_shape} in the source but {splits[0].image_shape} in the target: "
            "give --image-size, and sets with as many channels."
        )
    return pretrain, data.few_labels(splits[0], config.per_class, seed=config.seed), *splits[1:]


def sgd(rate):
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))


def thawing(rate, steps):
    """Shallower groups of layers join in later, a tenth of the steps after each other, and with smaller rates."""
    return optimizers.unfreezing(sgd, GROUPS, rate, every=steps // 10)


def last_layer(rate):
    """All other layers stay as they are."""
    return optimizers.by_path({"head": sgd(rate)}, optax.set_to_zero())
