"""The list of planted mistakes: one TOML file for each part of the library, beside this file."""

from __future__ import annotations

import dataclasses
import pathlib
import tomllib

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A plausible mistake, and the tests that must notice it.

    Attributes:
      name: The mistake in a few words.
      file: Path of the file below the root, such as "jaxkd/train/step.py".
      old: Text of the file, which stands there exactly once.
      new: The mistake, which takes its place.
      tests: The cheapest tests that notice it, as pytest takes them, below `tests/`.
      explained: Reason why no test can notice it; empty for all others.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    explained: str = ""

    def planted(self, text: str) -> str:
        """The file's text with the mistake in it.

        Args:
          text: The file's text.

        Returns:
          The text with the mistake.

        Raises:
          ValueError: If the old text does not stand in the file exactly once, or is no other than the new one.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"the mistake {self.name!r} replaces a text that stands {count} times in {self.file}, but should stand "
                f"there once: correct `old` in tests/mutation ({self.old.strip().splitlines()[0]} ...)."
            )
        if self.old == self.new:
            raise ValueError(f"the mistake {self.name!r} changes nothing: give another text for `new`.")
        return text.replace(self.old, self.new)


def read_mistakes(folder: pathlib.Path = FOLDER) -> list[Mistake]:
    """Reads the whole list.

    Args:
      folder: Folder of the TOML files, each of which holds tables `[[mistake]]`.

    Returns:
      The mistakes, file by file.

    Raises:
      TypeError: If a table lacks an entry or has another one.
    """
    tables = [table for file in sorted(folder.glob("*.toml")) for table in tomllib.loads(file.read_text())["mistake"]]
    return [Mistake(**{**table, "tests": tuple(table["tests"])}) for table in tables]
