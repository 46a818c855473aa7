"""
What a pool started is gone when it stops, and when its engine is killed.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fix_replicas import ECHO, children

from milkrun_engine.replicas import remains
from milkrun_engine.replicas.base import Pool
from milkrun_engine.replicas.local import LocalPool
from milkrun_engine.replicas.ray import RayPool

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]


@pytest.mark.parametrize("make", [LocalPool, RayPool], ids=["local", "ray"])
async def test_stop_leaves_no_process_and_no_folder(make: Callable[[Path], Pool], tmp_path: Path) -> None:
    before = children()
    pool = make(tmp_path)
    await pool.start()
    handles = [await pool.start_replica(ECHO) for _ in range(2)]
    await handles[0].ready()  # the other one is stopped while it loads
    folders = _folders(tmp_path)
    assert children() > before
    assert all(folder.is_dir() for folder in folders)
    assert {"127.0.0.1", "::ffff:127.0.0.1"} >= _listening(children() - before), "every port is on this host only"
    await pool.stop()
    assert before == children()
    assert not any(folder.exists() for folder in folders)
    assert [] == _folders(tmp_path)


@pytest.mark.parametrize("make", [LocalPool, RayPool], ids=["local", "ray"])
async def test_a_start_that_is_cancelled_leaves_no_process_and_no_folder(
    make: Callable[[Path], Pool], tmp_path: Path
) -> None:
    before = children()
    pool = make(tmp_path)
    starting = asyncio.create_task(pool.start_replica(ECHO))
    while not (folders := _folders(tmp_path)):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert before == children()
    assert not any(folder.exists() for folder in folders)
    assert [] == _folders(tmp_path)
    await pool.stop()


async def test_a_replica_whose_process_does_not_start_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no_python"))
    with pytest.raises(FileNotFoundError):
        await LocalPool(tmp_path).start_replica(ECHO)
    assert [] == _folders(tmp_path)


_ENGINE = """
import asyncio, sys
from pathlib import Path
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.local import LocalPool

async def main():
    pool = LocalPool(Path(sys.argv[1]))
    handle = await pool.start_replica(ModelSpec(name="echo", weights="", replica="echo"))
    print((await handle.ready()).pids[0], flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_replica_ends_with_a_killed_engine(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ENGINE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as engine:  # noqa: ASYNC220
        assert engine.stdout is not None
        replica = psutil.Process(int(engine.stdout.readline()))
        folders = _folders(tmp_path)
        assert folders
        engine.kill()
    psutil.wait_procs([replica], timeout=20)
    assert not replica.is_running()
    assert not any(folder.exists() for folder in folders)


async def test_the_next_engine_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    left = _leave(tmp_path, _gone())
    await LocalPool(tmp_path).start()
    assert not left.exists()
    assert [] == _folders(tmp_path)


def _gone() -> int:
    """The id of a process that is no more."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    return gone.pid


async def test_a_sweep_leaves_other_users_shared_memory_and_what_it_cant_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    monkeypatch.setattr(remains, "_SHARED_MEMORY", shared)
    mark, pid, mine, other = "__KMP_REGISTERED_LIB_", _gone(), os.getuid(), os.getuid() + 1
    own, living = shared / f"{mark}{pid}_{mine}", shared / f"{mark}{os.getpid()}_{mine}"
    theirs, strange = shared / f"{mark}{pid}_{other}", shared / f"{mark}x_{mine}"
    for file in (own, living, theirs, strange):
        file.touch()
    stubborn = shared / f"{mark}{_gone()}_{mine}"
    stubborn.mkdir()  # a folder can't be unlinked, by no user
    _leave(tmp_path, pid)
    remains.sweep(tmp_path)
    assert {living, theirs, strange, stubborn} == set(shared.iterdir())


async def test_one_bad_link_does_not_keep_the_others(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    bad = [tmp_path / "scratch" / name for name in ("x-y", f"{_gone()}-a", "9-z")]
    for link in bad:
        link.touch()  # no number, and no link
    left = _leave(tmp_path, _gone())
    remains.sweep(tmp_path)
    assert not left.exists()
    assert set(bad) == set((tmp_path / "scratch").iterdir())


def _leave(data_dir: Path, pid: int) -> Path:
    """The folder of an engine's replica that was killed with it."""
    left = data_dir / "left"
    left.mkdir()
    (data_dir / "scratch").mkdir(exist_ok=True)
    (data_dir / "scratch" / f"{pid}-{left.name}").symlink_to(left)
    return left


def _folders(data_dir: Path) -> list[Path]:
    return [link.readlink() for link in (data_dir / "scratch").glob("*")]


def _listening(pids: set[int]) -> set[str]:
    found = set()
    for pid in pids:
        for connection in psutil.Process(pid).net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip)
    return found
