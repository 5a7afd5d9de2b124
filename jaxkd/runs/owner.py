"""Ownership of a run's folder: one process writes in it, and every other start learns which one that is.

The owner is named in `owner.json`, which is made by an atomic hard link, so that of several starts one wins, also on
network file systems. A start that follows a dead owner with the token T links `owner.T.json`, so that again one wins.
The last file of this chain names the owner; once that one is settled, its file takes the place of `owner.json`.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import json
import os
import sys
import threading
import time
import uuid
from pathlib import Path

from jaxkd.parallel import peers
from jaxkd.runs.identity import Record, lives, this_process

BEAT = 10.0
"""Seconds between two signs of life of an owner, which renew the time stamp of its file."""

PATIENCE = 60.0
"""Seconds without a sign of life after which an owner counts as dead, where its process cannot be looked up."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


class Owner:
    """This process as the owner of a folder, made by `claim`.

    Attributes:
      folder: The folder.
      record: Contents of the owner's file.
    """

    def __init__(self, folder: Path, record: Record, file: Path) -> None:
        self.folder, self.record = folder, record
        self._file, self._claims = file, 1

    def settle(self) -> None:
        """Makes the claim final, which until then gives way to a start of the same moment that began earlier.

        Raises:
          ValueError: If the claim has given way.
        """
        with _lock:  # between two signs of life
            if self.record.settled:
                return
            final = dataclasses.replace(self.record, token=uuid.uuid4().hex, settled=True)
            file, root = _successor(self.folder, self.record), self.folder / "owner.json"
            if not self.owned() or not _add(final, file):
                self._forget()
                raise ValueError(_refusal(self.folder, last[1] if (last := _last(self.folder)) else Record()))
            os.rename(file, root)
            self._file, self.record = root, final
            for old in set(self.folder.glob("owner.*.json")) - {_successor(self.folder, final)}:
                old.unlink(missing_ok=True)

    def release(self) -> None:
        """Gives the folder up, once this has been called as often as the folder was claimed."""
        self._claims -= 1
        if self._claims == 0:
            self._remove()

    def beat(self) -> None:
        """Gives a sign of life; leaves the program if another process has taken the folder over."""
        with _lock:
            if not self.owned():
                return
            last = _last(self.folder)
            if last is None and self.folder.is_dir():
                _link(self.record, self.folder / "owner.json")  # somebody has deleted it
            elif last is not None and last[1].token != self.record.token and self.record.settled:
                told = f"{self.folder} was taken over by {_who(last[1])} while this process gave no sign of life"
                print(f"error: {told}: it stops here and writes nothing more.", file=sys.stderr, flush=True)
                os._exit(2)
            elif last is not None:
                os.utime(self._file)

    def owned(self) -> bool:
        """Tests if this process holds the folder, as far as it knows: a child that it forks does not.

        Returns:
          True until the folder is given up.
        """
        return _held.get(self.folder) is self and self.record.pid == os.getpid()

    def _remove(self) -> None:
        """Removes the owner's file, if this process is still the owner."""
        if not self.owned():
            return
        waited = _lock.acquire(timeout=5)  # a file system that does not answer does not keep the process from leaving
        self._forget()
        with contextlib.suppress(OSError):  # a file that stays names a process that is gone
            last = _last(self.folder)
            if last is not None and last[1].token == self.record.token:
                self._file.unlink(missing_ok=True)
        if waited:
            _lock.release()

    def _forget(self) -> None:
        """Leaves the folder out of those that this process holds."""
        if _held.get(self.folder) is self:
            del _held[self.folder]


_held: dict[Path, Owner] = {}
_lock = threading.Lock()
_beating: threading.Thread | None = None


def claim(folder: Path) -> Owner:
    """Makes this process the owner of a folder; a process that is the owner already claims it once more.

    An owner on the same machine is dead if there is no process with its number and start time. The process of another
    machine or container cannot be looked up: it is dead if its file stays without a sign of life for `PATIENCE`.

    Args:
      folder: The folder, which exists.

    Returns:
      The owner, not settled yet.

    Raises:
      ValueError: If another process owns the folder; says who, where, since when, and what to do.
      OSError: If the folder cannot be written to.
    """
    folder = folder.resolve()
    own = _held.get(folder)
    if own is not None and own.owned() and own._file.exists():
        own._claims += 1
        return own
    while True:
        last = _last(folder)
        record = this_process(folder)
        if last is not None and not _gives_way(folder, *last, record):
            continue  # it has ended, or another one came
        file = folder / "owner.json" if last is None else _successor(folder, last[1])
        if _add(record, file):
            break
        time.sleep(0.05)
    _held[folder] = Owner(folder, record, file)
    _begin_beating()
    return _held[folder]


def _gives_way(folder: Path, file: Path, owner: Record, own: Record) -> bool:
    """True if an owner is dead, or is to give way; false if it has gone; an error if it lives."""
    alive = lives(owner, own)
    if alive is None:
        return _waited(folder, file, owner)
    earlier = not owner.settled and (own.ticks, own.pid) < (owner.ticks, owner.pid)
    if alive and not earlier:
        raise ValueError(_refusal(folder, owner))
    return True


def _waited(folder: Path, file: Path, owner: Record) -> bool:
    """Waits for a sign of life: true if none came, false if the owner has gone, an error if it lives."""
    before, began = _stamp(file), time.monotonic()
    told = f"{folder} belongs to {_who(owner)}, which cannot be looked up from here"
    print(f"{told}: waiting up to {PATIENCE:g} s for a sign of life.", file=sys.stderr, flush=True)
    while time.monotonic() - began < PATIENCE:
        time.sleep(BEAT / 4)
        now = _stamp(file)
        if now is None:
            return False
        if now != before:
            raise ValueError(_refusal(folder, owner))
    print(f"no sign of life for {PATIENCE:g} s: taking {folder} over.", file=sys.stderr, flush=True)
    return True


def _stamp(file: Path) -> int | None:
    """Time stamp of a file; None if there is no such file. Opening it makes a network file system look anew."""
    try:
        with file.open("rb") as opened:
            return os.fstat(opened.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _who(owner: Record) -> str:
    """Who an owner is, for the middle of a sentence."""
    command = f", `{' '.join(owner.command.split())[:100]}`" if owner.command else ""
    return f"process {owner.pid} on {owner.host} (user {owner.user}, since {owner.since}{command})"


def _refusal(folder: Path, owner: Record) -> str:
    """Sentence for a start of a run that another process is running."""
    return (
        f"{folder} is being written by {_who(owner)}: wait for its end, stop it there (kill {owner.pid}), or choose "
        "another --name."
    )


def _successor(folder: Path, owner: Record) -> Path:
    """File of the one that follows an owner."""
    return folder / f"owner.{owner.token}.json"


def is_owner_file(file: Path) -> bool:
    """Tests if a file of a run's folder is one of those that name its owner.

    Args:
      file: The file.

    Returns:
      True for `owner.json`, `owner.<token>.json` and their temporary files.
    """
    name = file.name.removeprefix(".")
    return name.startswith("owner.") and name.endswith((".json", ".tmp"))


def _last(folder: Path) -> tuple[Path, Record] | None:
    """Last file of the chain and what it says; None if there is no owner."""
    file, found = folder / "owner.json", None
    while (record := _read(file)) is not None:
        found = (file, record)
        file = _successor(folder, record)
    return found


def _read(file: Path) -> Record | None:
    """What an owner's file says, None if there is none. One that is damaged has the name of the file as its token."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    damaged = Record(token=f"after-{file.stem[-40:]}")
    try:
        told = json.loads(text)
        kinds = {field.name: type(field.default) for field in dataclasses.fields(Record)}
        if set(told) == set(kinds) and all(type(told[name]) is kind for name, kind in kinds.items()):
            return Record(**told)
    except (ValueError, TypeError, RecursionError):
        return damaged
    return damaged


def _add(record: Record, file: Path) -> bool:
    """Adds a file to the end of the chain; false if another process has done so, or if the chain ends elsewhere."""
    if not _link(record, file):
        return False
    now = _last(file.parent)
    if now is not None and now[1].token == record.token:
        return True
    file.unlink(missing_ok=True)  # what it was to follow is no longer part of the chain
    return False


def _link(record: Record, file: Path) -> bool:
    """Makes an owner's file, whole; false if it exists."""
    text = json.dumps(dataclasses.asdict(record), indent=2) + "\n"
    temporary = file.with_name(f".owner.{record.token}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.link(temporary, file)
        return True
    except FileExistsError:  # or, on NFS, the answer to a link that was made was lost
        return temporary.exists() and temporary.stat().st_nlink == 2
    except FileNotFoundError:  # the temporary file was cleaned away
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create(file, text)
    finally:
        temporary.unlink(missing_ok=True)


def _create(file: Path, text: str) -> bool:
    """`_link` for file systems without hard links."""
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        return False
    return True


def _begin_beating() -> None:
    """Starts the thread of the signs of life, once a process."""
    global _beating
    if _beating is None or not _beating.is_alive():
        _beating = threading.Thread(target=_beat, daemon=True, name="jaxkd-owner")
        _beating.start()


def _beat() -> None:
    """Body of the thread, which ends when nothing is owned."""
    while _held:
        time.sleep(BEAT)
        for owner in list(_held.values()):
            with contextlib.suppress(OSError, ValueError):  # a network file system may be away for a while
                owner.settle()  # a claim that has given way is refused where it is settled otherwise
                owner.beat()


def release_all() -> None:
    """Gives up all folders, at the end of the process."""
    for owner in list(_held.values()):
        owner._remove()


atexit.register(release_all)
peers.before_exit.append(release_all)
