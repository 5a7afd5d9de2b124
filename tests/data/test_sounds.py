"""Recordings from files of all kinds: one rate, one loudness, speakers apart, and what is amiss is said."""

import logging
import sys

import numpy as np
import pytest
import soundfile

from jaxkd import data
from jaxkd.data import sounds
from jaxkd.data.readers import audio

RATE = 8000


def tone(hertz=400.0, seconds=0.3, rate=RATE, level=0.3):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Files of several kinds, in a folder for each class."""
    for name in ("yes", "no"):
        (tmp_path / name).mkdir()
    soundfile.write(tmp_path / "yes" / "ann_0.wav", tone(), RATE)
    soundfile.write(tmp_path / "yes" / "bob_0.flac", tone(500), RATE)
    soundfile.write(tmp_path / "no" / "ann_1.ogg", tone(600), RATE)
    soundfile.write(tmp_path / "no" / "bob_1.wav", tone(700), RATE, subtype="FLOAT")
    (tmp_path / "no" / "notes.txt").write_text("no sound")
    return tmp_path


def npz(path, rows, **fields):
    np.savez(
        path,
        audio=(np.concatenate(rows) * 32767).astype(np.int16),
        length=np.array([len(row) for row in rows]),
        sample_rate=RATE,
        **fields,
    )
    return f"npz:{path}"


def warnings_of(caplog):
    return " ".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_folders_hold_files_of_all_kinds(folder):
    found = data.open_sounds(f"folder:{folder}", speaker_pattern="^([^_]+)_")
    assert found.class_names == ("no", "yes")
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1])
    assert found.speakers.tolist() == ["ann", "bob", "ann", "bob"]
    for x, hertz in zip(found.samples, (600, 700, 400, 500), strict=True):
        assert abs(np.abs(np.fft.rfft(x)).argmax() * RATE / len(x) - hertz) < 4
        np.testing.assert_allclose(np.sqrt(np.mean(x**2)), sounds.LOUDNESS, rtol=1e-4)


def test_tables_and_arrays_hold_the_same(folder):
    (folder / "all.csv").write_text("path,word,speaker\nyes/ann_0.wav,yes,ann\nno/bob_1.wav,no,bob\n")
    table = data.open_sounds(f"csv:{folder / 'all.csv'}")
    assert table.class_names == ("no", "yes")
    assert table.speakers.tolist() == ["ann", "bob"]
    rows = [tone(), tone(700, 0.2)]
    names = {"digit": np.array([1, 0]), "digit_names": np.array(["no", "yes"]), "speaker": np.array([0, 1])}
    arrays = data.open_sounds(npz(folder / "part_train.npz", rows, **names, speaker_names=np.array(["ann", "bob"])))
    assert arrays.class_names == table.class_names
    assert arrays.speakers.tolist() == ["ann", "bob"]
    np.testing.assert_allclose(arrays.samples[0], table.samples[0], atol=1e-4)
    assert len(arrays.samples[1]) == 1600
    more = names | {"digit": np.array([0, 0]), "speaker_names": np.array(["cid", "dot"])}
    npz(folder / "part_test.npz", rows, **more)
    both = data.open_sounds(f"npz:{folder / 'part_{split}.npz'}")
    assert both.speakers.tolist() == ["cid", "dot", "ann", "bob"]
    np.testing.assert_array_equal(both.labels, [0, 0, 1, 0])


def test_speakers_are_never_in_two_parts():
    draw = np.random.default_rng(0)
    who = draw.choice(["a", "b", "c", "d"], 40).tolist()
    labels = draw.integers(0, 2, 40).tolist()
    all_of = data.open_sounds({"audio": [tone()] * 40, "sample_rate": RATE, "label": labels, "speaker": who})
    parts = data.split_by_speaker(all_of, ["b"], ["a", "d"])
    assert [sorted(set(part.speakers.tolist())) for part in parts] == [["c"], ["b"], ["a", "d"]]
    assert sum(map(len, parts)) == 40
    assert sorted(np.concatenate([part.ids for part in parts]).tolist()) == list(range(40))
    for groups, message in (
        ([["x"]], "no recording of the speaker 'x': its speakers are a, b, c and d"),
        ([["a"], ["a", "b"]], "the speaker 'a' is in two parts"),
        ([["a", "b"], ["c", "d"]], "no speaker of arrays is left"),
        ([["a"], []], "no speaker of arrays is left"),
    ):
        with pytest.raises(ValueError, match=message):
            data.split_by_speaker(all_of, *groups)


def test_recordings_that_tell_no_speaker_are_counted(caplog):
    who = ["a", "", "b", ""]
    all_of = data.open_sounds({"audio": [tone()] * 4, "sample_rate": RATE, "label": [0, 1, 0, 1], "speaker": who})
    data.split_by_speaker(all_of, ["b"])
    assert "2 of 4 recordings of arrays tell no speaker: they train." in caplog.text


def test_other_rates_are_resampled_or_refused(caplog):
    found = sounds.resample(tone(400, 0.5, 16000), 16000, RATE)
    np.testing.assert_allclose(found[200:-200], tone(400, 0.5)[200:-200], atol=2e-3)
    spec = {"audio": [tone(rate=16000), tone(rate=16000)], "sample_rate": 16000, "label": [0, 1]}
    assert data.open_sounds(spec).rate == 16000
    down = data.open_sounds(spec, rate=RATE)
    assert len(down.samples[0]) == 2400
    assert "2 of 2 recordings of arrays are resampled from 16000 Hz to 8000 Hz" in warnings_of(caplog)
    with pytest.raises(ValueError, match="has 16000 samples a second but --sample-rate is 8000"):
        data.open_sounds(spec, rate=RATE, other_rate="refuse")


def test_several_channels_are_mixed_or_refused(tmp_path):
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "0.wav", np.stack([tone(), np.zeros_like(tone())], axis=1), RATE)
    read = audio.read_file(tmp_path / "a" / "0.wav")
    assert read.samples.shape == (2400, 2)
    mixed = data.open_sounds(f"folder:{tmp_path}")
    np.testing.assert_allclose(mixed.samples[0], sounds.LOUDNESS * np.sqrt(2) / 0.3 * tone(), atol=1e-3)
    with pytest.raises(ValueError, match=r"0\.wav has 2 channels"):
        data.open_sounds(f"folder:{tmp_path}", stereo="refuse")


def test_empty_silent_and_clipped_recordings_are_counted(caplog):
    rows = [tone(), np.zeros(0), np.zeros(2400), np.clip(9 * tone(), -1, 1), tone()[:100]]
    found = data.open_sounds({"audio": rows, "sample_rate": RATE, "label": list("abcde")})
    np.testing.assert_array_equal(found.ids, [0, 3])
    said = warnings_of(caplog)
    assert "2 of 5 recordings of arrays are empty or shorter than 20 ms, and are left out" in said
    assert "1 of 5 recordings of arrays are silent" in said
    assert "1 of 5 recordings of arrays are clipped" in said
    assert "recording 3 of arrays" in said
    with pytest.raises(ValueError, match="all 1 recordings of arrays are empty or silent"):
        data.open_sounds({"audio": rows[1:2], "sample_rate": RATE, "label": [0]})
    with pytest.raises(ValueError, match="recording 0 of arrays holds NaN or Inf"):
        data.open_sounds({"audio": [np.full(2400, np.nan)], "sample_rate": RATE, "label": [0]})


def test_sources_cut_and_pad(caplog):
    found = data.open_sounds({"audio": [tone(), tone(seconds=0.1)], "sample_rate": RATE, "label": [1, 0]})
    source = data.to_source(found, 0.2)
    batch = source.read(np.arange(2))
    assert batch["audio"].shape == (2, 1600)
    np.testing.assert_array_equal(batch["length"], [1600, 800])
    np.testing.assert_array_equal(batch["audio"][0], found.samples[0][:1600])
    assert not batch["audio"][1, 800:].any()
    assert "1 of 2 recordings of arrays are longer than 0.2 s and are cut" in warnings_of(caplog)
    assert source.num_classes == 2
    assert source.class_names == ("0", "1")


def test_damaged_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    whole = tmp_path / "a" / "0.wav"
    soundfile.write(whole, tone(), RATE)
    raw = whole.read_bytes()
    for content, message in (
        (raw[:3000], "it ends after 1478 of 2400 samples"),
        (b"RIFF" + b"\0" * 40, "cannot be read as a recording"),
        (b"", "cannot be read as a recording"),
    ):
        whole.write_bytes(content)
        with pytest.raises(ValueError, match=message) as raised:
            audio.read_file(whole)
        assert str(whole) in str(raised.value)
    (tmp_path / "a" / "1.flac").write_bytes(b"fLaC torn")
    with pytest.raises(ValueError, match=r"1\.flac cannot be read as a recording"):
        audio.read_file(tmp_path / "a" / "1.flac")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxkd\[speech\]'"):
        audio.read_file(tmp_path / "a" / "1.flac")
    whole.write_bytes(raw)
    assert audio.read_file(whole).rate == RATE, "WAV of 16-bit PCM needs the standard library alone"


def test_sets_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no set of recordings"):
        data.open_sounds("fsdd")
    with pytest.raises(ValueError, match="there is no folder"):
        data.open_sounds(f"folder:{tmp_path / 'none'}")
    with pytest.raises(ValueError, match="has no recording in a folder of a class"):
        data.open_sounds(f"folder:{tmp_path}")
    (tmp_path / "t.csv").write_text("file,label\na.wav,0\n")
    with pytest.raises(ValueError, match="the field `path` of sound files is needed"):
        data.open_sounds(f"csv:{tmp_path / 't.csv'}")
    (tmp_path / "t.csv").write_text("path,label\na.wav,0\n")
    with pytest.raises(ValueError, match=r"line 2 of .*t\.csv names .*a\.wav, which is no file"):
        data.open_sounds(f"csv:{tmp_path / 't.csv'}")
    with pytest.raises(ValueError, match="has no field 'label', only other"):
        data.open_sounds(npz(tmp_path / "a.npz", [tone()], other=np.array([1])))
    with pytest.raises(ValueError, match=r"`other` of .* has 2 values for 1 recordings"):
        data.open_sounds(npz(tmp_path / "a.npz", [tone()], other=np.array([1, 2])))
    np.savez(tmp_path / "b.npz", audio=np.zeros(5, np.int16), length=np.array([4]), sample_rate=8000)
    with pytest.raises(ValueError, match="add up to 4 samples but `audio` has 5"):
        data.open_sounds(f"npz:{tmp_path / 'b.npz'}")
    np.savez(tmp_path / "b.npz", image=np.zeros(5))
    with pytest.raises(ValueError, match="has no array `audio`, only image"):
        data.open_sounds(f"npz:{tmp_path / 'b.npz'}")
