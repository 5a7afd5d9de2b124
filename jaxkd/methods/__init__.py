"""Methods: whole procedures that need more than one network, optimizer or phase, a file each."""

from jaxkd.methods import (
    annealing,
    blockwise,
    born_again,
    conflicts,
    discriminator,
    dot,
    dynamic_weights,
    mutual_learning,
    robust,
    self_distillation,
    several_teachers,
    side_network,
    theseus,
)

__all__ = [
    "annealing",
    "blockwise",
    "born_again",
    "conflicts",
    "discriminator",
    "dot",
    "dynamic_weights",
    "mutual_learning",
    "robust",
    "self_distillation",
    "several_teachers",
    "side_network",
    "theseus",
]
