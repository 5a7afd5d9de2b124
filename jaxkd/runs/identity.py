"""Who a process is, in words that another process, perhaps on another machine, can compare with what it sees."""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import os
import shlex
import socket
import sys
import uuid
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Record:
    """Contents of an owner's file.

    Attributes:
      token: Name that no other owner has.
      host: Name of the machine.
      boot: Number of the machine's start, "" where the system has none.
      namespace: Number of the set of processes that `pid` counts in; containers have one each.
      pid: Number of the process.
      ticks: Start of the process, in ticks since the machine's start; -1 where that is unknown.
      user: Name of its user.
      since: Time at which the folder was claimed.
      command: Command line.
      folder: Number of the folder in its file system, which a copy of the folder does not have.
      settled: True once nothing that an earlier start does can take the folder away.
    """

    token: str = ""
    host: str = "an unknown host"
    boot: str = ""
    namespace: str = ""
    pid: int = 0
    ticks: int = -1
    user: str = "an unknown user"
    since: str = "an unknown time"
    command: str = ""
    folder: int = 0
    settled: bool = True


def this_process(folder: Path) -> Record:
    """This process as an owner that is not settled.

    Args:
      folder: The folder that it is to own.

    Returns:
      The contents of its file, with a new token.

    Raises:
      FileNotFoundError: If there is no such folder.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name
        user = str(os.getuid()) if hasattr(os, "getuid") else Record.user
    return Record(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot=_text("/proc/sys/kernel/random/boot_id"),
        namespace=_namespace(),
        pid=os.getpid(),
        ticks=ticks(os.getpid()),
        user=user,
        since=datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        command=shlex.join(sys.argv),
        folder=folder.stat().st_ino,
        settled=False,
    )


def _text(file: str) -> str:
    """Contents of a file of the system, "" if there is none."""
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _namespace() -> str:
    """Number of the set of processes that this process's number counts in."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def ticks(pid: int) -> int:
    """Start time of a process, which tells it from another one with the same number.

    Args:
      pid: Its number.

    Returns:
      Ticks since the machine's start; -1 if there is no such process, if it has ended, or if the system does not say.
    """
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else -1


def _exists(pid: int) -> bool:
    """Tests if there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def lives(owner: Record, own: Record) -> bool | None:
    """Looks for an owner's process.

    Args:
      owner: The owner.
      own: This process, for the same folder.

    Returns:
      True if it lives, False if it has ended, None if that cannot be known from here.
    """
    if owner.host != own.host:
        return None
    if owner.boot and (owner.boot, owner.namespace) == (own.boot, own.namespace):
        if ticks(owner.pid) != owner.ticks or owner.pid == own.pid:  # this process has forgotten that it was it
            return False
        return True if owner.folder == own.folder else None  # None: the folder was copied from one that is owned
    return False if not own.boot and not _exists(owner.pid) else None
