"""
Temporary folders and shared memory of replicas, removed with them.

A folder lies outside the data folder, because the paths of Unix sockets are short; a link in
the data folder remembers it, so that the next engine removes what a killed one left.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil

# What vLLM, Python and Intel's OpenMP leave in shared memory when their process is killed.
_SHARED = re.compile(r"/dev/shm/(?:psm_|sem\.mp-|__KMP_REGISTERED_LIB_)\S+$")  # noqa: S108 (read, never made here)


def make(data_dir: Path) -> Path:
    """Make a folder with a short path, and remember it."""
    folder = Path(tempfile.mkdtemp(prefix="milkrun-"))
    links = data_dir / "scratch"
    links.mkdir(parents=True, exist_ok=True)
    (links / f"{os.getpid()}-{folder.name}").symlink_to(folder)
    return folder


def remove(folder: Path, data_dir: Path) -> None:
    """Remove a folder and forget it; safe to repeat."""
    shutil.rmtree(folder, ignore_errors=True)
    for link in (data_dir / "scratch").glob(f"*-{folder.name}"):
        link.unlink(missing_ok=True)


def sweep(data_dir: Path) -> None:
    """Remove the folders of engines that are no more."""
    for link in (data_dir / "scratch").glob("*-*"):
        if not psutil.pid_exists(int(link.name.split("-", 1)[0])):
            remove(link.readlink(), data_dir)


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """Name the shared memory that living processes hold and that would outlive their sudden end."""
    found = set[Path]()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if match := _SHARED.search(line):
                    found.add(Path(match[0]))
    return found


def unlink(paths: Iterable[Path]) -> None:
    """Free shared memory whose processes are gone."""
    for path in paths:
        path.unlink(missing_ok=True)
