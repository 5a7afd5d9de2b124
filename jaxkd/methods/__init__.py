"""Methods: whole procedures that need more than one network, optimizer or phase, a file each."""

from jaxkd.methods import (
    annealing,
    blockwise,
    conflicts,
    discriminator,
    dot,
    dynamic_weights,
    several_teachers,
    side_network,
    theseus,
)

__all__ = [
    "annealing",
    "blockwise",
    "conflicts",
    "discriminator",
    "dot",
    "dynamic_weights",
    "several_teachers",
    "side_network",
    "theseus",
]
