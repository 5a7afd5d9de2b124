"""Recordings of an experiment: the flags that say where they are and how they are read, and their reading."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jaxkd.data.sounds import Sounds, open_sounds
from jaxkd.experiment.config import Config
from jaxkd.experiment.domains import COUNT
from jaxkd.experiment.fields.tones import TONES, tones
from jaxkd.experiment.flags import DATA, flag


@dataclasses.dataclass(frozen=True)
class RecordingsConfig(Config):
    """Base configuration of an experiment with recordings of several speakers."""

    source: str = flag(
        "npz:fsdd/{split}.npz",
        "recordings: npz:PATH of arrays ({split} in PATH reads all such files), folder:PATH with a folder for each "
        "word, csv:PATH or tsv:PATH of a table with the fields path and label or text",
        DATA,
    )
    label_field: str | None = flag(None, "field of the words or texts; one with a usual name if absent", DATA)
    speaker_field: str | None = flag(None, "field of the speakers; one with a usual name if absent", DATA)
    speaker_pattern: str | None = flag(None, "regular expression whose group is the speaker in a file's name", DATA)
    sample_rate: int | None = flag(None, "samples a second; that of most recordings if absent", DATA, COUNT)
    other_rate: Literal["resample", "refuse"] = flag("resample", "recordings of another rate", DATA)
    stereo: Literal["mix", "refuse"] = flag("mix", "recordings of several channels", DATA)
    held_out: tuple[str, ...] = flag((), "speakers to test on; a fifth of them, the last by name, if absent", DATA)


def sounds_of(config: RecordingsConfig, spec: str | Mapping[str, Any] | None = None, **options: Any) -> Sounds:
    """Opens recordings as the flags say.

    Args:
      config: The configuration.
      spec: Recordings in place of those of `--source`.
      **options: Options of `jaxkd.data.sounds.open_sounds` in place of those of the flags.

    Returns:
      The recordings; tones if the source is "tones", for smoke runs.

    Raises:
      ValueError: As `open_sounds` says.
      ImportError: If a file needs the package `soundfile`, which is missing.
    """
    if config.source == TONES and spec is None:
        return tones(config.seed)
    flags: dict[str, Any] = {
        "rate": config.sample_rate,
        "other_rate": config.other_rate,
        "stereo": config.stereo,
        "label": config.label_field,
        "speaker": config.speaker_field,
        "speaker_pattern": config.speaker_pattern,
    }
    return open_sounds(config.source if spec is None else spec, **{**flags, **options})
