"""The CIFAR-100 distillation benchmark: its recipe, and the table of what came of it.

Epochs here are of whole batches: 781 steps of 64 images, where others' have one more, of the last 16.
"""

import optax
from _published import both

from jaxkd import augment, reports
from jaxkd.runs.logger import read_metrics

EPOCHS, BEFORE, IMAGES, DROPS = 240, 30, 50_000, (150, 180, 210)
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

COLUMNS = {
    "method": "method",
    "last": "last epoch %",
    "best": "best epoch %",
    "published": "published, last",
    "later": "published, best",
    "seconds": "seconds",
}
REDUCED = "A reduced budget: not to be compared with the published figures, which are of 240 epochs of 50,000 images."


def views(seed):
    """How images are prepared to train, cropped and flipped at random, and to measure."""
    clean = augment.compose(augment.to_float(), augment.normalize(MEAN, STD))
    noisy = augment.compose(augment.random_crop(4), augment.flip(), clean)
    return augment.augment_batch(noisy, seed=seed), augment.augment_batch(clean, seed=seed)


def optimizer(network, *, epochs, steps_per_epoch, learning_rate=None, weight_decay=5e-4, before=""):
    """SGD with momentum from 0.05, or 0.01 for some, a tenth of it at the drops, of which a stage `before` has none."""
    slow = ("Mobile", "Shuffle", "resnet", "wrn") if before == "term" else ("Mobile", "Shuffle")
    start = learning_rate or (0.01 if network.startswith(slow) else 0.05)
    drops = {round(epochs * drop / EPOCHS) * steps_per_epoch: 0.1 for drop in (() if before else DROPS)}
    sgd = optax.sgd(optax.piecewise_constant_schedule(start, drops), momentum=0.9)
    return optax.chain(optax.add_decayed_weights(weight_decay), sgd)


def share(whole, epochs):
    """As much of a training as so many of the benchmark's 240 epochs are of them, in epochs or steps; one at least."""
    return max(1, round(whole * epochs / EPOCHS))


def beside(validation, pair, seconds, lost=()):
    """Rows of the table from `reports.last_and_best`: ours, the published ones, and how long a training took."""
    return [
        {
            "method": stage,
            **_ours(stage, validation, lost),
            **both(stage, pair),
            "seconds": f"{seconds[stage]:.0f}" if stage in seconds else "-",
        }
        for stage in {**validation, **dict.fromkeys(lost)}
    ]


def _ours(stage, validation, lost):
    """Accuracies of one stage, of which one that diverged has none."""
    if stage in lost:
        return dict.fromkeys(("last", "best"), "diverged")
    return {kind: reports.mean_std(validation[stage][kind], scale=100) for kind in ("last", "best")}


def tell(run, config, pair, images, seconds, lost):
    """Shows the table of a run, with why methods diverged where some did, and finishes the run."""
    reduced = config.epochs < EPOCHS or images < IMAGES
    title = f"{' -> '.join(pair)}, {config.seeds} seed(s), {config.epochs} epochs of {images:,}"
    rows = beside(reports.last_and_best(read_metrics(run.path)), pair, seconds, lost)
    caption = "\n".join([REDUCED] * reduced + [f"{name}: {why}" for name, why in lost.items()])
    reports.show(reports.table(rows, COLUMNS, title=title, caption=caption))
    run.finish({"table": rows, "reduced": reduced, "diverged": lost})
    print(f"metrics and checkpoints are in {run.path}")
