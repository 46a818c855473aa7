"""
What a pool started is gone when it stops, and when its engine is killed.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fix_replicas import ECHO, children

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
    left = tmp_path / "left"
    left.mkdir()
    gone = subprocess.Popen(["true"])  # noqa: ASYNC220
    gone.wait()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / f"{gone.pid}-{left.name}").symlink_to(left)
    await LocalPool(tmp_path).start()
    assert not left.exists()
    assert [] == _folders(tmp_path)


def _folders(data_dir: Path) -> list[Path]:
    return [link.readlink() for link in (data_dir / "scratch").iterdir()]


def _listening(pids: set[int]) -> set[str]:
    found = set()
    for pid in pids:
        for connection in psutil.Process(pid).net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip)
    return found
