"""The recipe of the CIFAR-100 distillation benchmark (Tian, Krishnan, Isola), and the table of its results.

Networks see 50,000 images of 32x32 pixels, cropped at random after padding by 4 pixels and flipped at random, for 240
epochs in batches of 64. SGD with momentum 0.9 and weight decay 5e-4 starts at 0.05 (0.01 for MobileNet and ShuffleNet)
and falls to a tenth after epochs 150, 180 and 210. Methods with two phases pre-train for 30 epochs without drops, in
which a term's own parameters start at 0.01 with ResNets too. Shorter trainings scale all of these epochs. Epochs are of
whole batches here: 781 steps of 64 images, where the published ones have one more, of the last 16.
"""

import optax
from published import figures

from jaxkd import augment, models, reports
from jaxkd.experiment import conclude
from jaxkd.experiment.images import prepared
from jaxkd.experiment.methods import EPOCHS
from jaxkd.experiment.networks import make_network

PRETRAINING, IMAGES, DROPS = 30, 50_000, (150, 180, 210)
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

COLUMNS = {
    "method": "method",
    "last": "last epoch %",
    "best": "best epoch %",
    "published": "published, last",
    "later": "published, best",
    "seconds": "seconds",
}
REDUCED = "A reduced budget: not to be compared with the published results, which are of 240 epochs of 50,000 images."


def network(name, num_classes):
    """A network by name, with batch norms as those of the published results."""
    return models.unbiased_variance(make_network(name, num_classes))


def views(source, seed):
    """Functions that prepare batches of images: for training (cropped and flipped at random), and for evaluation."""
    return prepared(source, [augment.random_crop(4), augment.flip()], seed=seed, statistics=(MEAN, STD))


def optimizer(network, *, epochs, steps_per_epoch, learning_rate=None, weight_decay=5e-4, pretrains=""):
    """SGD of a phase, or of one before it that pre-trains the "student" or a "term", which has no drops of the rate."""
    slow = ("Mobile", "Shuffle", "resnet", "wrn") if pretrains == "term" else ("Mobile", "Shuffle")
    start = (0.01 if network.startswith(slow) else 0.05) if learning_rate is None else learning_rate
    drops = {round(epochs * drop / EPOCHS) * steps_per_epoch: 0.1 for drop in (() if pretrains else DROPS)}
    sgd = optax.sgd(optax.piecewise_constant_schedule(start, drops), momentum=0.9)
    return optax.chain(optax.add_decayed_weights(weight_decay), sgd)


def table_rows(validation, pair, seconds, diverged=()):
    """Rows of the table: our accuracies (from `reports.last_and_best`), the published ones, the training's seconds."""
    return [
        {
            "method": phase,
            **_ours(phase, validation, diverged),
            **figures(phase, pair),
            "seconds": f"{seconds[phase]:.0f}" if phase in seconds else "-",
        }
        for phase in {**validation, **dict.fromkeys(diverged)}
    ]


def _ours(phase, validation, diverged):
    """Last and best accuracy of a phase, or that it diverged."""
    if phase in diverged:
        return dict.fromkeys(("last", "best"), "diverged")
    return {kind: reports.mean_std(validation[phase][kind], scale=100) for kind in ("last", "best")}


def conclude_table(run, config, images, seconds, diverged):
    """Ends a run with its table, and below it the reasons why methods diverged."""
    pair, reduced = (config.teacher, config.student), config.epochs < EPOCHS or images < IMAGES
    conclude(
        run,
        lambda validation: table_rows(validation, pair, seconds, diverged),
        COLUMNS,
        title=f"{' -> '.join(pair)}, {config.seeds} seed(s), {config.epochs} epochs of {images:,}",
        caption="\n".join([REDUCED] * reduced + [f"{name}: {why}" for name, why in diverged.items()]),
        reduced=reduced,
        diverged=diverged,
    )
