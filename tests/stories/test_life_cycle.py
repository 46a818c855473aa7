"""
The one local engine: started once, outliving its clients, trusted only while it answers, gone without a trace.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from stories.server import Server, wait_for

import milkrun as mr
from milkrun import local

pytestmark = pytest.mark.engine

CLIENT = """
import signal, sys, time, milkrun as mr
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background hands down that it is ignored
with mr.Milkrun() as client:
    job_id = client.infer(["one", "two"])
    rows = client.await_job_results(job_id, timeout=60)
    print(client.health().instance_id, len(rows), flush=True)
    time.sleep(float(sys.argv[1]))
"""


class Home:
    """A user's machine: everything that an engine or client may write lies below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data" / "milkrun"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MILKRUN_", "XDG_"))},
            "HOME": str(folder / "home"),
            "TMPDIR": str(self.temporary),
            "XDG_DATA_HOME": str(folder / "data"),
            "MILKRUN_REPLICA": "echo",
        }

    def client(self, linger: float = 0.0, **environ: str) -> subprocess.Popen[str]:
        """A client in a session of its own that runs a small job and lingers."""
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(linger)],
            env=self.environ | environ, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One of the engine's commands."""
        command = [sys.executable, "-m", "milkrun_engine", *arguments]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60, check=False)

    @property
    def engine(self) -> local.EngineFile:
        """What the engine last said of itself."""
        told = local.EngineFile.read(self.data_dir)
        assert told is not None
        return told

    def engines(self) -> list[psutil.Process]:
        """The processes that have this machine's data directory on their command line."""
        return [process for process in psutil.process_iter() if str(self.data_dir) in " ".join(_command_line(process))]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just gone
        return []


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A machine of its own for one test; no engine is left on it."""
    home = Home(tmp_path)
    yield home
    for process in home.engines():
        process.kill()


def _told(client: subprocess.Popen[str]) -> list[str]:
    """What a client printed: the engine's instance id, and the rows that it got."""
    output, _ = client.communicate(timeout=60)
    assert client.returncode == 0
    return output.split()


def test_clients_share_one_engine(home: Home) -> None:
    """Clients that begin together start one engine; Ctrl-C in one does not end it; `milkrun stop` leaves nothing."""
    clients = [home.client() for _ in range(3)]
    interrupted = home.client(linger=60)
    assert interrupted.stdout is not None
    first = interrupted.stdout.readline().split()
    os.killpg(interrupted.pid, signal.SIGINT)
    interrupted.communicate(timeout=30)
    told = [_told(client) for client in clients]
    assert [first] * 3 == told
    assert ["2"] * 3 == [rows for _, rows in told]
    assert 1 == len(home.engines())
    engine = home.engine
    assert engine.instance_id == first[0]
    assert 0o600 == (home.data_dir / "engine.json").stat().st_mode & 0o777
    children = psutil.Process(engine.pid).children(recursive=True)

    assert 0 == home.command("stop").returncode
    assert [] == home.engines()
    assert not any(child.is_running() for child in children)
    assert not (home.data_dir / "engine.json").exists()
    assert [] == list(home.temporary.iterdir())
    assert {"data", "tmp"} == {path.name for path in home.folder.iterdir()}, "something was written outside"
    assert {"milkrun"} == {path.name for path in (home.folder / "data").iterdir()}
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", int(engine.url.rpartition(":")[2])))
    assert "No engine runs" in home.command("stop").stdout


def test_a_dead_engine_is_not_trusted(home: Home) -> None:
    """`engine.json` of a killed engine, or an address where another one answers, makes a client start its own."""
    before = _told(home.client())[0]
    os.kill(home.engine.pid, signal.SIGKILL)
    assert before == home.engine.instance_id, "the file outlives a killed engine"
    after = _told(home.client())[0]
    assert before != after
    told = home.engine
    os.kill(told.pid, signal.SIGKILL)
    (home.data_dir / "engine.json").write_text(json.dumps({**_facts(told), "instance_id": "engine_of_another"}))
    assert local.find(home.data_dir) is None


def test_an_idle_engine_ends(home: Home) -> None:
    """Without jobs and callers a local engine ends by itself, after the time that it is given."""
    _told(home.client(MILKRUN_IDLE_SECONDS="1"))
    wait_for(lambda: not home.engines(), seconds=20, what="the idle stop")
    assert not (home.data_dir / "engine.json").exists()
    assert [] == list(home.temporary.iterdir())


def test_a_second_engine_names_the_holder(serve: Callable[..., Server]) -> None:
    """One engine a data directory: a second one exits and says who has it."""
    server = serve()
    second = subprocess.run(
        [sys.executable, "-m", "milkrun_engine", "serve", "--replica", "echo", "--port", "0",
         "--data-dir", str(server.data_dir)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert local.IN_USE_EXIT == second.returncode
    assert f"process {server.pid}" in second.stderr
    with server.client() as client:
        assert 1 == len(client.await_job_results(client.infer(["still here"]), timeout=30))


def test_sigterm_answers_its_waiters(serve: Callable[..., Server]) -> None:
    """A long-poll is answered when the server stops; a waiter goes on with the next one."""
    server = serve(pace=0.02)
    with server.client() as client, ThreadPoolExecutor(2) as threads:
        job_id = client.infer([f"row {index}" for index in range(300)])
        cursor = client.changes().cursor
        poll = threads.submit(client.changes, after=cursor, wait=60)
        waiter = threads.submit(client.wait, job_id, timeout=90)
        time.sleep(0.5)  # both are open; were they not, they would find the next server
        server.stop()
        answered_while_down = poll.done()
        server.start()
        assert mr.JobStatus.succeeded == waiter.result(timeout=90).status
        assert answered_while_down


def _facts(file: local.EngineFile) -> dict[str, Any]:
    return {"url": file.url, "api_key": file.api_key, "pid": file.pid, "version": file.version}
