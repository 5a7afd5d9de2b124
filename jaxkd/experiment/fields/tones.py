"""Words of tones, made in memory, for smoke runs of experiments on speech."""

from __future__ import annotations

import numpy as np

from jaxkd.data.sounds import Sounds, open_sounds

TONES = "tones"
"""Source of such words."""


def tones(seed: int, *, words: int = 3, speakers: int = 4, takes: int = 4, rate: int = 4000) -> Sounds:
    """Words of two tones each, at a pitch of the speaker's.

    Args:
      seed: Seed of lengths and noise.
      words: Number of words.
      speakers: Number of speakers, "s0", "s1", ...
      takes: Recordings of each word by each speaker.
      rate: Samples a second.

    Returns:
      The recordings, of 0.15 to 0.25 s.
    """
    random = np.random.default_rng(seed)
    audio, labels, names = [], [], []
    for speaker in range(speakers):
        for word in range(words):
            for _ in range(takes):
                time = np.arange(int(rate * random.uniform(0.15, 0.25))) / rate
                pitch = (1 + 0.05 * speaker) * np.where(time < time[-1] / 2, 300 + 250 * word, 900 - 150 * word)
                audio.append(0.5 * np.sin(2 * np.pi * pitch * time) + 0.05 * random.standard_normal(len(time)))
                labels.append(f"tone{word}")
                names.append(f"s{speaker}")
    return open_sounds({"audio": audio, "sample_rate": rate, "label": labels, "speaker": names})
