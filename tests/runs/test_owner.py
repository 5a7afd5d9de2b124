"""A run's folder has one owner at a time, whoever starts when and however the one before has ended."""

import dataclasses
import errno
import json
import os
import shutil
import textwrap
import time

import pytest
from configured import Config

from jaxkd.runs import directory, identity, owner


def another(folder, **changes):
    """The folder of a run that another living process of this machine owns: this one's parent."""
    folder.mkdir(exist_ok=True)
    parent = os.getppid()
    record = dataclasses.replace(identity.this_process(folder), pid=parent, ticks=identity.ticks(parent), settled=True)
    record = dataclasses.replace(record, user="ada", since="2026-01-02 03:04:05+00:00", command="a.py", **changes)
    assert owner._link(record, folder / "owner.json")
    return record


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Signs of life that are waited for a moment only; nothing owned by this process stays."""
    monkeypatch.setattr(owner, "BEAT", 0.01)
    monkeypatch.setattr(owner, "PATIENCE", 0.05)
    monkeypatch.setattr(owner, "_beating", None)
    yield
    owner.release_all()


def files(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_second_start_is_refused_in_a_sentence_and_harms_nothing(tmp_path):
    folder = tmp_path / "digits"
    record = another(folder)
    for start in (
        lambda: directory.open_run(Config(), root=tmp_path),
        directory.reserved(tmp_path, "digits").__enter__,
    ):
        with pytest.raises(ValueError, match=r"digits is being written by process") as caught:
            start()
        for said in (str(record.pid), record.host, "user ada", "since 2026-01-02", "`a.py`", "kill", "--name"):
            assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert files(folder) == ["owner.json"]


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"ticks": 1}], ids=["gone", "its number is another's"])
def test_a_dead_owner_is_followed_at_once(tmp_path, changes, capsys):
    folder = tmp_path / "digits"
    folder.mkdir()
    dead = {"pid": os.getppid(), "ticks": identity.ticks(os.getppid()), "settled": True, **changes}
    assert owner._link(dataclasses.replace(identity.this_process(folder), **dead), folder / "owner.json")
    with directory.open_run(Config(), root=tmp_path):
        told = json.loads((folder / "owner.json").read_text())
        assert (told["pid"], told["settled"]) == (os.getpid(), True)
        assert files(folder) == ["config.json", "environment.json", "owner.json"]
    assert files(folder) == ["config.json", "environment.json"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("changes", [{"host": "another"}, {"boot": "another"}, {"namespace": "another"}])
def test_an_owner_that_cannot_be_looked_up_is_waited_for(tmp_path, monkeypatch, capsys, changes):
    """Another machine, this one before it was started anew, another container with the same name and process 1."""
    folder = tmp_path / "digits"
    another(folder, **changes)
    stamps = iter([1, 1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(owner, "_stamp", lambda file: next(stamps))
        with pytest.raises(ValueError, match="is being written by process"):
            owner.claim(folder)
    owner.claim(folder).settle()
    assert "taking" in capsys.readouterr().err
    assert json.loads((folder / "owner.json").read_text())["pid"] == os.getpid()


def test_a_copy_of_a_running_run_is_not_running(tmp_path):
    another(tmp_path / "digits")
    shutil.copytree(tmp_path / "digits", tmp_path / "copy")
    owner.claim(tmp_path / "copy").settle()


@pytest.mark.parametrize("text", ["", '{"token": "x"', "[1]", '{"token": 3}', "\0" * 40])
def test_a_damaged_owner_is_waited_for_and_followed(tmp_path, text):
    (tmp_path / "owner.json").write_text(text)
    owner.claim(tmp_path).settle()
    assert files(tmp_path) == ["owner.json"]
    assert owner._last(tmp_path)[1].pid == os.getpid()


@pytest.mark.parametrize("made", [True, False], ids=["its answer is lost", "there are none"])
def test_links_that_fail(tmp_path, monkeypatch, made):
    """A network file system may lose the answer to a link that it has made; others have no links."""
    real = os.link

    def link(source, target):
        if made:
            real(source, target)
            raise FileExistsError(errno.EEXIST, "exists")
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(owner.os, "link", link)
    (tmp_path / "mine").mkdir()
    owner.claim(tmp_path / "mine").settle()
    assert files(tmp_path / "mine") == ["owner.json"]
    monkeypatch.undo()
    other = another(tmp_path / "other")
    monkeypatch.setattr(owner.os, "link", link if not made else real)
    assert not owner._link(dataclasses.replace(other, token="new"), tmp_path / "other" / "owner.json")
    with pytest.raises(ValueError, match="is being written by"):
        owner.claim(tmp_path / "other")


def test_an_earlier_start_of_the_same_moment_goes_first(tmp_path):
    later = identity.ticks(os.getpid()) + 1
    mine = identity.this_process(tmp_path)
    assert owner._link(dataclasses.replace(mine, pid=os.getppid(), ticks=later), tmp_path / "owner.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "ticks", lambda pid: later if pid == os.getppid() else mine.ticks)
        first = owner.claim(tmp_path)
    given_way = owner.Owner(tmp_path, dataclasses.replace(mine, pid=os.getppid(), token="later"), tmp_path / "x")
    other = owner._successor(tmp_path, first.record)
    first.settle()
    assert files(tmp_path) == ["owner.json"]
    assert not other.exists()
    assert owner._link(dataclasses.replace(first.record, token="new"), owner._successor(tmp_path, given_way.record))
    with pytest.raises(ValueError, match="is being written by"):
        given_way.settle()


def test_signs_of_life(tmp_path, monkeypatch, capsys):
    mine = owner.claim(tmp_path)
    mine.settle()
    assert owner.claim(tmp_path) is mine, "a process that owns a folder may claim it again"
    mine.release()
    before = owner._stamp(tmp_path / "owner.json")
    for _ in range(500):
        time.sleep(0.01)
        if owner._stamp(tmp_path / "owner.json") != before:
            break
    else:
        raise AssertionError("no sign of life")
    (tmp_path / "owner.json").unlink()
    mine.beat()
    assert owner._last(tmp_path)[1] == mine.record, "it was deleted by somebody"
    codes = []
    monkeypatch.setattr(owner.os, "_exit", codes.append)
    new = dataclasses.replace(mine.record, token="new", host="elsewhere")
    assert owner._link(new, owner._successor(tmp_path, mine.record))
    mine.beat()
    assert set(codes) == {2}
    assert "was taken over by process" in capsys.readouterr().err
    mine.release()
    assert owner._last(tmp_path)[1] == new, "what another one owns stays"


def test_of_many_starts_at_the_same_moment_one_wins(forks, tmp_path):
    """Also if they follow an owner that is dead."""
    code = """
        import sys, time
        from pathlib import Path
        from jaxkd.runs import owner

        root, number, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
        for turn in range(10):
            folder = root / str(turn)
            (folder / f"ready.{number}").touch()
            while len(list(folder.glob("ready.*"))) < count:
                time.sleep(0.001)
            try:
                owner.claim(folder).settle()
                print(turn, flush=True)
            except ValueError as error:
                assert "is being written by" in str(error)
        (root / f"done.{number}").touch()
        while len(list(root.glob("done.*"))) < count:
            time.sleep(0.01)
    """
    for turn in range(10):
        folder = tmp_path / str(turn)
        folder.mkdir()
        if turn % 2:
            dead = dataclasses.replace(identity.this_process(folder), pid=2**22 + 1, settled=True)
            assert owner._link(dead, folder / "owner.json")
    started = [forks.start_code(textwrap.dedent(code), str(tmp_path), str(n), "4") for n in range(4)]
    said = [one.communicate(timeout=120) for one in started]
    assert [one.returncode for one in started] == [0] * 4, said
    assert sorted(int(turn) for out, _ in said for turn in out.split()) == list(range(10))
    assert not list(tmp_path.glob("*/owner.*")), "all have given up what they owned"
