"""Methods: whole procedures that need more than one network, optimizer or phase, a file each."""

from jaxkd.methods import annealing, conflicts, dot, dynamic_weights, several_teachers, theseus

__all__ = ["annealing", "conflicts", "dot", "dynamic_weights", "several_teachers", "theseus"]
