"""Methods: whole procedures that need more than one network, optimizer or phase, a file each."""

from jaxkd.methods import theseus

__all__ = ["theseus"]
