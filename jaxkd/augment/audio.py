"""Sounds: log-mel spectra by two products of matrices, changes of speed, noise, and masks on spectra.

An example has `audio` [L] in floats and `length`, its number of samples, past which `audio` is 0, until `to_log_mel`
adds `log_mel` [F, M] and `frames`, the number of frames within the recording.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd.augment.core import Augmentation, Example
from jaxkd.keys import typed_key


class LogMel(NamedTuple):
    """Settings of log-mel spectra.

    Attributes:
      rate: Samples a second.
      window: Length of a frame, in seconds.
      hop: Time between the beginnings of two frames, in seconds.
      mels: Number of mel bands M.
      low: Lower end of the lowest band, in Hz.
      high: Upper end of the highest band, in Hz; half the rate if None.
      floor: Power that is added before the logarithm; that of a full-scale sine is 1/4 in its bin.
    """

    rate: int
    window: float = 0.032
    hop: float = 0.016
    mels: int = 40
    low: float = 60.0
    high: float | None = None
    floor: float = 1e-6

    @property
    def size(self) -> int:
        """Samples of a frame."""
        return round(self.window * self.rate)

    @property
    def step(self) -> int:
        """Samples from the beginning of a frame to that of the next."""
        return round(self.hop * self.rate)

    def frames(self, length: Any) -> Any:
        """Number of frames that lie within recordings.

        Args:
          length: Numbers of samples, integers of any shape.

        Returns:
          Integers of the same shape, at least 1: a recording shorter than a frame has one, which padding fills up.
        """
        return 1 + (length > self.size) * ((length - self.size) // self.step)


def dft_matrix(size: int) -> np.ndarray:
    """Cosines and sines of a discrete Fourier transform, with a periodic Hann window folded in.

    w[n] cos(2 pi n k / N) / sum w  and  w[n] sin(2 pi n k / N) / sum w,  w[n] = (1 - cos(2 pi n / N)) / 2

    Args:
      size: Samples of a frame N.

    Returns:
      float64 [N, 2 (N // 2 + 1)]: the cosines of all frequencies k, then the sines.
    """
    n, k = np.arange(size)[:, None], np.arange(size // 2 + 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / size)
    angle = 2 * np.pi * (n * k % size) / size
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1) * (window / window.sum())


def mel_matrix(settings: LogMel) -> np.ndarray:
    """Triangular bands of equal width on the mel scale, each of height 1.

    mel(f) = 2595 log10(1 + f / 700)

    Args:
      settings: The settings.

    Returns:
      float64 [size // 2 + 1, M], the weight of each frequency in each band.

    Raises:
      ValueError: If the bands do not lie within 0 Hz and half the rate, or a band holds no frequency of the transform.
    """
    high = settings.rate / 2 if settings.high is None else settings.high
    if not 0 <= settings.low < high <= settings.rate / 2 or settings.mels < 1:
        raise ValueError(
            f"{settings.mels} mel bands from {settings.low:g} to {high:g} Hz were asked for at {settings.rate} samples "
            f"a second: give at least 1, within 0 and {settings.rate / 2:g} Hz."
        )
    first, last = (2595 * math.log10(1 + f / 700) for f in (settings.low, high))
    ends = np.linspace(first, last, settings.mels + 2)
    ends = 700 * (10 ** (ends / 2595) - 1)
    f = np.arange(settings.size // 2 + 1)[:, None] * settings.rate / settings.size
    rise = (f - ends[:-2]) / (ends[1:-1] - ends[:-2])
    fall = (ends[2:] - f) / (ends[2:] - ends[1:-1])
    found = np.maximum(0, np.minimum(rise, fall))
    if (empty := np.flatnonzero(found.sum(axis=0) == 0)).size:
        raise ValueError(
            f"mel band {empty[0]} of {settings.mels} holds no frequency of a frame of {settings.size} samples: give "
            "fewer bands, or a longer window."
        )
    return found


def frame(audio: jax.Array, size: int, step: int) -> jax.Array:
    """Overlapping frames, by slices and a concatenation, which all formats of export know.

    Args:
      audio: [..., L], L >= size.
      size: Samples of a frame.
      step: Samples from the beginning of a frame to that of the next.

    Returns:
      [..., F, size], F = 1 + (L - size) // step; samples past the last whole frame are left out.

    Raises:
      ValueError: If there is no whole frame.
    """
    length, part = audio.shape[-1], math.gcd(size, step)
    if length < size:
        raise ValueError(f"audio has {length} samples but a frame has {size}: give longer audio, or pad it.")
    count, stride = 1 + (length - size) // step, step // part
    parts = audio[..., : length // part * part].reshape(*audio.shape[:-1], length // part, part)
    last = stride * (count - 1) + 1
    return jnp.concatenate([parts[..., i : i + last : stride, :] for i in range(size // part)], axis=-1)


def log_mel(audio: jax.Array, settings: LogMel) -> jax.Array:
    """Logarithms of the power in mel bands, by two products of matrices for each frame.

    log(M^T |W x|^2 + floor)

    Args:
      audio: [..., L] in floats.
      settings: The settings; the matrices are constants of the program.

    Returns:
      [..., F, M], of at least float32.

    Raises:
      ValueError: As `frame` and `mel_matrix` say.
    """
    audio = audio.astype(jnp.promote_types(audio.dtype, jnp.float32))
    dft, mel = (jnp.asarray(matrix, audio.dtype) for matrix in _matrices(settings))
    products = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    parts = products(frame(audio, settings.size, settings.step), dft)
    return jnp.log(products(jnp.square(parts), mel) + settings.floor)


@functools.cache
def _matrices(settings: LogMel) -> tuple[np.ndarray, np.ndarray]:
    """The transform [size, 2 bins], and the bands [2 bins, M], which add cosines and sines."""
    return dft_matrix(settings.size), np.tile(mel_matrix(settings), (2, 1))


def to_log_mel(settings: LogMel, mean: ArrayLike = 0.0, std: ArrayLike = 1.0) -> Augmentation:
    """Turns audio into its log-mel spectrum.

    Args:
      settings: The settings.
      mean: Subtracted from each band, scalar or [M].
      std: Divides each band after that, scalar or [M].

    Returns:
      An augmentation, which uses no randomness: it replaces `audio` and `length` by `log_mel` float32 [F, M] and
      `frames`, the number of frames within the recording.
    """

    def apply(key: jax.Array | None, example: Example) -> Example:
        audio = audio_of(example)
        rest = {name: value for name, value in example.items() if name not in ("audio", "length")}
        spectrum = log_mel(audio, settings)
        by_band = [jnp.broadcast_to(jnp.asarray(x, spectrum.dtype), spectrum.shape) for x in (mean, std)]
        spectrum = (spectrum - by_band[0]) / by_band[1]
        return {**rest, "log_mel": spectrum.astype(jnp.float32), "frames": settings.frames(example["length"])}

    return apply


def add_noise(
    low: float, high: float | None = None, *, noise: ArrayLike | None = None, chance: float = 1.0
) -> Augmentation:
    """Adds noise at a ratio of signal to noise in dB.

    10 log10(mean of x^2 over the recording / mean of noise^2) = SNR, uniform in low..high

    Args:
      low: Lowest ratio in dB.
      high: Highest ratio in dB; `low` if None.
      noise: Samples [N] of a recording of noise, of which each example gets a random part; white noise if None.
      chance: Chance that an example gets any.

    Returns:
      An augmentation of `audio`. Silent audio stays silent.

    Raises:
      ValueError: If the bounds are in the wrong order, or by the augmentation, if the noise is shorter than the audio.
    """
    high = low if high is None else high
    if not low <= high or not 0 <= chance <= 1:
        raise ValueError(f"noise was asked for at {low} to {high} dB with chance {chance}: give low <= high, 0..1.")

    def apply(key: jax.Array, example: Example) -> Example:
        audio = audio_of(example)
        which, ratio, draw = jax.random.split(typed_key(key), 3)
        added = _noise_like(draw, audio, noise)
        # Past its end a recording is 0, so that its sum of squares is that of the recording alone.
        length = jnp.maximum(1, example["length"]).astype(audio.dtype)
        power = jnp.sum(jnp.square(audio)) / length
        snr = jax.random.uniform(ratio, (), audio.dtype, low, high)
        scale = jnp.sqrt(power / jnp.maximum(jnp.mean(jnp.square(added)), 1e-20) * 10.0 ** (-snr / 10))
        on = jax.random.bernoulli(which, chance)
        return {**example, "audio": audio + jnp.where(on, scale, 0) * added}

    return apply


def _noise_like(key: jax.Array, audio: jax.Array, noise: ArrayLike | None) -> jax.Array:
    """Noise of the shape of some audio: white, or a random part of a recording."""
    if noise is None:
        return jax.random.normal(key, audio.shape, audio.dtype)
    given, length = jnp.asarray(noise, audio.dtype), audio.shape[-1]
    if given.ndim != 1 or given.shape[0] < length:
        raise ValueError(
            f"noise has shape {given.shape} but audio has {length} samples: give at least as many in one array [N]."
        )
    start = jax.random.randint(key, (), 0, given.shape[0] - length + 1)
    return jax.lax.dynamic_slice_in_dim(given, start, length)


def change_speed(low: float, high: float) -> Augmentation:
    """Plays a recording faster or slower, which changes its pitch too, as another speaker would.

    y[n] = x[s n] by linear interpolation, s uniform in low..high

    Args:
      low: Lowest factor on the speed, above 0.
      high: Highest factor.

    Returns:
      An augmentation of `audio` and `length`; what a slower recording has past the end of `audio` is cut off.

    Raises:
      ValueError: If the factors are not positive or in the wrong order.

    Reference:
      Ko et al., "Audio Augmentation for Speech Recognition", Interspeech 2015,
      https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html
    """
    if not 0 < low <= high:
        raise ValueError(f"speeds from {low} to {high} were asked for: give positive factors, the lower one first.")

    def apply(key: jax.Array, example: Example) -> Example:
        audio, samples = audio_of(example), example["audio"].shape[-1]
        speed = jax.random.uniform(typed_key(key), (), audio.dtype, low, high)
        length = jnp.floor(example["length"] / speed).astype(jnp.int32).clip(1, samples)
        place = speed * jnp.arange(samples, dtype=audio.dtype)
        left = place.astype(jnp.int32)
        part, padded = place - left.astype(audio.dtype), jnp.pad(audio, (0, 2))
        at = lambda index: padded[jnp.minimum(index, samples)]  # noqa: E731
        moved = (1 - part) * at(left) + part * at(left + 1)
        return {**example, "audio": jnp.where(jnp.arange(samples) < length, moved, 0), "length": length}

    return apply


def spec_augment(*, times: int = 2, time: int = 10, bands: int = 2, band: int = 8) -> Augmentation:
    """SpecAugment's masks: runs of frames and of mel bands become 0, the mean of a normalised spectrum.

    Each mask's width is uniform in 0..its largest, and its place is uniform.

    Args:
      times: Number of masks of frames.
      time: Largest width of these, in frames.
      bands: Number of masks of bands.
      band: Largest width of these, in bands.

    Returns:
      An augmentation of `log_mel`. Frames are masked within the recording alone.

    Reference:
      Park et al., "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition", Interspeech 2019,
      https://arxiv.org/abs/1904.08779
    """

    def apply(key: jax.Array, example: Example) -> Example:
        spectrum = example["log_mel"]
        keys = jax.random.split(typed_key(key), 2)
        frames = _masks(keys[0], times, time, spectrum.shape[0], example["frames"])
        mels = _masks(keys[1], bands, band, spectrum.shape[1], spectrum.shape[1])
        return {**example, "log_mel": jnp.where(frames[:, None] | mels[None], 0, spectrum)}

    return apply


def _masks(key: jax.Array, count: int, most: int, size: int, real: ArrayLike) -> jax.Array:
    """Mask [size] that is true in some runs within the first `real` places."""
    widths, starts = jax.random.split(key)
    width = jax.random.randint(widths, (count, 1), 0, jnp.minimum(most, jnp.asarray(real)) + 1)
    start = jax.random.randint(starts, (count, 1), 0, jnp.asarray(real) - width + 1)
    place = jnp.arange(size)[None]
    return jnp.any((place >= start) & (place < start + width), axis=0)


def audio_of(example: Example) -> jax.Array:
    """Audio of an example, after a check that it is [L] in floats and has its length beside it.

    Args:
      example: The example.

    Returns:
      [L].

    Raises:
      ValueError: If it is not.
    """
    for field in ("audio", "length"):
        if field not in example:
            raise ValueError(
                f"example has no field {field!r}, only {sorted(example)}: add it, or leave this stage out."
            )
    audio = jnp.asarray(example["audio"])
    if audio.ndim != 1 or not jnp.issubdtype(audio.dtype, jnp.floating):
        raise ValueError(
            f"audio has shape {audio.shape} and dtype {audio.dtype}, expected floats [L] of one example: use "
            "augment_batch for batches."
        )
    return audio
