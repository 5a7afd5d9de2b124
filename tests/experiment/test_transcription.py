"""Transcribed recordings of users' files and of joined words: splits, sources, floors, what a teacher is asked."""

import dataclasses
import wave

import numpy as np
import pytest

from jaxkd.data.transcripts import Units
from jaxkd.experiment.fields import transcribed
from jaxkd.experiment.fields import transcription as field

RATE = 4000


@pytest.fixture
def manifest(tmp_path):
    """Writes a table of ten recordings of noise, each of a number of seconds, with their texts."""

    def write(texts, seconds):
        random, lines = np.random.default_rng(0), ["path,text"]
        for number, (text, length) in enumerate(zip(texts, seconds, strict=True)):
            with wave.open(str(tmp_path / f"{number}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes((3000 * random.standard_normal(int(RATE * length))).astype("<i2").tobytes())
            lines.append(f"{number}.wav,{text}")
        (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
        return field.TranscriptionConfig(source=f"csv:{tmp_path / 'all.csv'}", strings=0, units="characters", buckets=1)

    return write


def test_a_table_of_recordings_and_texts_is_a_corpus(manifest, caplog):
    corpus = field.open_corpus(manifest(["no way"] * 8 + ["yes", "no"], [0.9] * 10))
    assert corpus.units.names == tuple(" anowy")
    assert [len(part.texts) for part in corpus[:3]] == [8, 1, 1]
    assert "has 2 characters that the training texts lack, such as e and s" in caplog.text
    assert "every tenth recording" in caplog.text
    batch = corpus.train.source.read(np.arange(8))
    assert batch["log_mel"].shape == (8, batch["frames"].max(), 40 * field.STACK)
    assert batch["frames"].tolist() == [-(-(1 + (3600 - 128) // 64) // field.STACK)] * 8
    real = batch["log_mel"][np.arange(batch["log_mel"].shape[1]) < batch["frames"][:, None]]
    np.testing.assert_allclose(real.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(real.std(axis=0), 1, atol=1e-3)
    assert corpus.units.decode(batch["text"][0][batch["text_mask"][0]]) == "no way"
    assert "text" not in corpus.test.source.read(np.arange(1))
    assert transcribed.constant_floor(corpus) == ["no way"]


def test_a_text_that_its_recording_is_too_short_for_is_refused(manifest):
    with pytest.raises(
        ValueError, match=r"recording 2 of .*\[train\] has 2 stacked frames but its text 'noon' needs 5"
    ):
        field.open_corpus(manifest(["no", "on", "noon", *["no"] * 7], [0.4, 0.4, 0.1, *[0.4] * 7]))


def test_texts_of_a_table_are_read_as_they_stand(manifest):
    corpus = field.open_corpus(manifest([" 007", "3  5 1", *["42"] * 8], [0.9] * 10))
    assert corpus.train.texts == ["007", "3 5 1", *["42"] * 6]
    with pytest.raises(ValueError, match=r"row 2 of .*all.csv has no text: write one"):
        field.open_corpus(manifest(["1", "2", " ", *["3"] * 7], [0.3] * 10))
    config = manifest(["1"] * 10, [0.3] * 10)
    with pytest.raises(ValueError, match=r"has no field 'words', only .*: name the one that holds the texts by"):
        field.open_corpus(dataclasses.replace(config, label_field="words"))
    with pytest.raises(ValueError, match=r"--strings is 0 but --source is folder:words: give csv:PATH or tsv:PATH"):
        field.open_corpus(dataclasses.replace(config, source="folder:words"))


def test_flags_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="--fewest is 5 but --most is 3"):
        field.TranscriptionConfig(fewest=5, most=3).check()
    with pytest.raises(ValueError, match="--held-out and --validation-speakers go together"):
        field.TranscriptionConfig(held_out=("ann",)).check()


def test_strings_of_words_their_floors_and_masks():
    names = {"held_out": ("s0",), "validation_speakers": ("s1",), "strings": 6, "test_strings": 5}
    corpus = field.open_corpus(field.TranscriptionConfig(source="tones", fewest=1, most=3, buckets=1, **names))
    assert set(corpus.test.sounds.speakers) == {"s0"}
    assert set(corpus.train.sounds.speakers) == {"s2", "s3"}
    assert [len(text.split()) for text in transcribed.cut_floor(corpus)] == [len(t.split()) for t in corpus.test.texts]
    rows = np.arange(6)
    batch = {**corpus.train.source.read(rows), "view": np.zeros(6, np.int32)}
    plain, masked = field.prepare_with(None)(batch), field.prepare_with(0)(batch)
    assert np.asarray(plain["frame_mask"]).sum(axis=1).tolist() == batch["frames"].tolist()
    hidden = np.asarray(masked["log_mel"]) != batch["log_mel"]
    assert hidden.any()
    assert (np.asarray(masked["log_mel"])[hidden] == 0).all()
    heard = field.with_field(
        corpus.train.source, "teacher_logits", np.zeros((6, *batch["log_mel"].shape[1:2], 4)), per_frame=True
    )
    assert heard.per_token == ("log_mel", "teacher_logits")


def test_what_a_network_wrote_is_read_and_scored():
    units = Units(("one", "two"), "words")
    paths = np.array([[1, 1, 0, 1, 2], [0, 2, 2, 2, 1]])
    logits, frames = 8 * np.eye(3, dtype=np.float32)[paths], np.array([5, 3])
    assert transcribed.transcribe(logits, frames, units) == ["one one two", "two"]
    scores = transcribed.error_rates(["one one two", "two two"], ["one two two", "two"])
    assert scores["wer"] == pytest.approx(2 / 5)
    assert (scores["substitutions"], scores["deletions"], scores["insertions"]) == pytest.approx((0.2, 0.2, 0.0))
    found = transcribed.best_texts(logits, frames, best=2)
    assert found["hypotheses"][:, 0].tolist()[0][:3] == [1, 1, 2]
    assert found["hypotheses"][1, 0][found["hypothesis_mask"][1, 0]].tolist() == [2]
    np.testing.assert_allclose(found["hypothesis_weights"].sum(axis=1), 1, rtol=1e-6)
    assert (found["hypothesis_weights"][:, 0] > 0.9).all()
