"""Methods: whole procedures that need more than one network, optimizer or phase, a file each."""

from jaxkd.methods import several_teachers, theseus

__all__ = ["several_teachers", "theseus"]
