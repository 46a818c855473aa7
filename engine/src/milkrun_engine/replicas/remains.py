"""
What a replica leaves behind, and its removal: processes, a temporary folder, shared memory.

A folder lies outside the data folder, because the paths of Unix sockets are short. A link in
the data folder remembers it, and a file in it the shared memory of the replica's processes,
so that the next engine removes what a killed one left.
"""

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

log = logging.getLogger(__name__)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (nothing is made here)
_NOTE = "shared_memory"
_MARK = "__KMP_REGISTERED_LIB_"  # of Intel's OpenMP, one a process, by its id and its user's
_TRACKER_SECONDS = 1.0
_END_SECONDS = 5.0


def make(data_dir: Path) -> Path:
    """Make a folder with a short path, and remember it."""
    folder = Path(tempfile.mkdtemp(prefix="milkrun-"))
    links = data_dir / "scratch"
    links.mkdir(parents=True, exist_ok=True)
    (links / f"{os.getpid()}-{folder.name}").symlink_to(folder)
    return folder


def note(folder: Path, pids: Iterable[int]) -> None:
    """Note the shared memory of living processes, which would outlive their sudden end."""
    files = {name for pid in pids for name in _mapped_files(pid)}
    with contextlib.suppress(FileNotFoundError), (folder / _NOTE).open("a") as out:
        out.writelines(f"{name}\n" for name in sorted(files))


def end(group: int, folder: Path) -> None:
    """
    Kill every process of a group but the caller, and wait until they are gone; safe to repeat.

    Python's resource tracker first gets a moment to free what those that ended before have left.
    """
    start = time.monotonic()
    while (members := _members(group)) and time.monotonic() < start + _END_SECONDS:
        note(folder, members)
        patient = time.monotonic() < start + _TRACKER_SECONDS
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                if not (patient and _is_tracker(pid)):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def remove(folder: Path, data_dir: Path) -> None:
    """
    Remove a folder and the shared memory noted in it, and forget it; its processes are gone.

    Safe to repeat, and never raises: what can't be removed stays.
    """
    with contextlib.suppress(OSError, ValueError):
        for name in (folder / _NOTE).read_text().splitlines():
            _unlink(_SHARED_MEMORY / name)
    for mark in _SHARED_MEMORY.glob(f"{_MARK}*_{os.getuid()}"):  # others' are theirs
        with contextlib.suppress(ValueError):
            if not _lives(int(mark.name.removeprefix(_MARK).split("_", 1)[0])):
                _unlink(mark)
    shutil.rmtree(folder, ignore_errors=True)
    for link in (data_dir / "scratch").glob(f"*-{folder.name}"):
        _unlink(link)


def sweep(data_dir: Path) -> None:
    """Remove what engines left that are no more."""
    for link in (data_dir / "scratch").glob("*-*"):
        try:
            if not _lives(int(link.name.split("-", 1)[0])):
                remove(link.readlink(), data_dir)
        except (OSError, ValueError):
            log.warning("no link of ours", extra={"action": "sweep_skipped", "link": link.name})


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _members(group: int) -> list[int]:
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == group and _lives(pid):
                members.append(pid)
    return [pid for pid in members if pid != os.getpid()]


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_tracker(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any("resource_tracker" in word for word in psutil.Process(pid).cmdline())
    return False


def _mapped_files(pid: int) -> set[str]:
    """Name what a process maps of the shared memory; by inode, because a semaphore is mapped under another name."""
    inodes = set[int]()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(str(_SHARED_MEMORY)):
                inodes.add(int(fields[4]))
    return {entry.name for entry in os.scandir(_SHARED_MEMORY) if entry.inode() in inodes}
