"""Methods: whole procedures that need more than one network, optimizer or phase, a file each."""

from jaxkd.methods import conflicts, dot, several_teachers, theseus

__all__ = ["conflicts", "dot", "several_teachers", "theseus"]
