"""Sounds on the device: spectra as SciPy's, noise at its ratio, masks within the recording, keys by example alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import stft

from jaxkd import augment
from jaxkd.augment.audio import dft_matrix, frame, mel_matrix

SETTINGS = augment.LogMel(8000, window=0.02, hop=0.01, mels=12)
L = 2000


@pytest.fixture(scope="module")
def tones():
    """Three recordings of a tone and noise, of different lengths."""
    draw, time = np.random.default_rng(0), np.arange(L) / 8000
    audio = 0.1 * np.sin(2 * np.pi * np.array([[200.0], [900.0], [3000.0]]) * time) + 0.01 * draw.normal(size=(3, L))
    length = np.array([2000, 1500, 700], np.int32)
    audio *= np.arange(L) < length[:, None]
    ids = np.array([7, 8, 9], np.int32)
    return {"audio": audio.astype(np.float32), "length": length, "id": ids, "view": np.zeros(3, np.int32)}


def made(augmentation, batch, seed=0):
    return jax.jit(augment.augment_batch(augmentation, seed=seed, field="audio"))(batch)


@pytest.mark.parametrize("window", [0.02, 0.025, 0.032])
def test_spectra_are_those_of_scipy_in_float64(window, tones):
    settings = SETTINGS._replace(window=window)
    audio, size, step = tones["audio"].astype(np.float64), settings.size, settings.step
    parts = stft(audio, 8000, "hann", size, size - step, boundary=None, padded=False, detrend=False)[2]
    wanted = np.log(np.swapaxes(np.abs(parts) ** 2, 1, 2) @ mel_matrix(settings) + settings.floor)
    found = np.asarray(augment.log_mel(jnp.asarray(tones["audio"]), settings))
    assert found.shape == (3, settings.frames(L), 12) == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_frames_are_slices(tones):
    found = np.asarray(frame(jnp.asarray(tones["audio"]), 200, 80))
    np.testing.assert_array_equal(found[1, 5], tones["audio"][1, 400:600])
    assert found.shape == (3, 23, 200)
    with pytest.raises(ValueError, match="audio has 100 samples but a frame has 200"):
        frame(jnp.zeros(100), 200, 80)


def test_the_program_has_no_fourier_transform_and_no_gather():
    text = jax.jit(lambda x: augment.log_mel(x, SETTINGS)).lower(jnp.zeros((1, L))).as_text()
    assert text.count("dot_general") == 2
    assert "fft" not in text
    assert "gather" not in text


def test_matrices_are_a_windowed_transform_and_triangles():
    x = np.random.default_rng(0).normal(size=160)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(160) / 160)
    wanted = np.fft.rfft(x * window / window.sum())
    np.testing.assert_allclose(x @ dft_matrix(160), np.concatenate([wanted.real, -wanted.imag]), atol=1e-12)
    bands = mel_matrix(SETTINGS)
    assert (bands >= 0).all()
    assert bands.max() <= 1
    assert (np.diff(bands.argmax(axis=0)) > 0).all()
    with pytest.raises(ValueError, match="give at least 1, within 0 and 4000 Hz"):
        mel_matrix(SETTINGS._replace(high=5000.0))
    with pytest.raises(ValueError, match="holds no frequency"):
        mel_matrix(SETTINGS._replace(mels=100))


@pytest.mark.parametrize("noise", [None, np.sin(np.arange(5000) * 0.9).astype(np.float32) * 3])
@pytest.mark.parametrize("snr", [20.0, -5.0])
def test_noise_has_its_ratio_to_the_recording(tones, snr, noise):
    found = made(augment.add_noise(snr, noise=noise), tones)
    added = np.asarray(found["audio"], np.float64) - tones["audio"]
    power = (tones["audio"].astype(np.float64) ** 2).sum(axis=1) / tones["length"]
    np.testing.assert_allclose(10 * np.log10(power / (added**2).mean(axis=1)), snr, atol=0.01)
    assert len({float(row.sum()) for row in added}) == 3, "examples share noise"


def test_noise_by_chance_and_bounds(tones):
    rows = {name: np.repeat(value[:1], 200, axis=0) for name, value in tones.items()} | {"id": np.arange(200)}
    changed = np.abs(np.asarray(made(augment.add_noise(0, 20, chance=0.25), rows)["audio"]) - rows["audio"]).max(axis=1)
    assert 20 < (changed > 0).sum() < 80
    with pytest.raises(ValueError, match="give low <= high"):
        augment.add_noise(10, 5)
    with pytest.raises(ValueError, match=r"noise has shape \(10,\) but audio has 2000 samples"):
        made(augment.add_noise(0, noise=np.ones(10)), tones)
    silent = tones | {"audio": np.zeros_like(tones["audio"])}
    assert not np.asarray(made(augment.add_noise(0), silent)["audio"]).any()


def test_a_change_of_speed_moves_length_and_pitch(tones):
    found = made(augment.change_speed(1.25, 1.25), tones)
    np.testing.assert_array_equal(found["length"], [1600, 1200, 560])
    assert not np.asarray(found["audio"])[:, 1600:].any()
    high = np.abs(np.fft.rfft(np.asarray(found["audio"])[0, :1600])).argmax() * 8000 / 1600
    assert high == 250
    slow = made(augment.change_speed(0.5, 0.5), tones)
    np.testing.assert_array_equal(slow["length"], [2000, 2000, 1400])
    np.testing.assert_allclose(np.asarray(slow["audio"])[0, ::2], tones["audio"][0, :1000], atol=1e-6)
    with pytest.raises(ValueError, match="give positive factors"):
        augment.change_speed(0.0, 1.0)


def test_masks_lie_within_recordings_and_have_their_widths(tones):
    rows = {name: np.repeat(value[2:], 100, axis=0) for name, value in tones.items()} | {"id": np.arange(100)}
    stages = augment.to_log_mel(SETTINGS, mean=np.full(12, 100.0)), augment.spec_augment(times=1, time=4, bands=0)
    found = np.asarray(made(augment.compose(*stages), rows)["log_mel"])
    masked = (found == 0).all(axis=2)
    real = SETTINGS.frames(700)
    assert real == 7
    assert masked[:, :real].sum(axis=1).max() == 4
    assert set(np.flatnonzero(masked.any(axis=0))) == set(range(real))
    stages = stages[0], augment.spec_augment(times=0, bands=1, band=3)
    bands = (np.asarray(made(augment.compose(*stages), rows)["log_mel"]) == 0).all(axis=1).sum(axis=1)
    assert set(bands) == {0, 1, 2, 3}


def test_an_example_is_changed_alike_in_any_batch(tones):
    stages = augment.compose(
        augment.change_speed(0.9, 1.1), augment.add_noise(0, 20), augment.to_log_mel(SETTINGS), augment.spec_augment()
    )
    whole = made(stages, tones)
    alone = made(stages, {name: value[1:2] for name, value in tones.items()})
    np.testing.assert_allclose(whole["log_mel"][1], alone["log_mel"][0], atol=1e-5)
    other = made(stages, tones, seed=1)
    assert np.abs(np.asarray(whole["log_mel"]) - np.asarray(other["log_mel"])).max() > 0.1


def test_what_lacks_its_length_or_is_a_batch_is_refused(tones):
    with pytest.raises(ValueError, match="no field 'length'"):
        augment.to_log_mel(SETTINGS)(None, {"audio": np.zeros(L, np.float32)})
    with pytest.raises(ValueError, match=r"audio has shape \(3, 2000\)"):
        augment.to_log_mel(SETTINGS)(None, tones)
    with pytest.raises(ValueError, match="batch has no field 'audio'"):
        made(augment.to_log_mel(SETTINGS), {"id": np.zeros(1, np.int32)})
