"""
An engine over echo as a process of its own: started, killed, started again on the same folder and address.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
import yaml
from checker import Answer, Evidence, FeedWatcher, Interruption, Place, gather, interruption

import milkrun as mr
from milkrun.local import EngineFile

KEY = "mk_story_0123456789"
START_SECONDS = 120.0
STOP_SECONDS = 30.0
DEATH_SECONDS = 120.0


class Server:
    """
    `milkrun serve` on a folder of its own, with echo unless told otherwise.

    Args:
        folder: gets `data` (the data directory), `echo.log`, `server.log` and `models.yaml`.
        pace: seconds a row of the whole replica.
        engine_args: more of echo's arguments.
        environ: variables beside the caller's own.
        replica: echo, or vllm with the models that ship.
        pool: local or ray.
        shared: a Postgres database and a folder of blobs, for several engines; a data directory of its own if absent.
        fail_points: `MILKRUN_FAILPOINTS` of the next start.
        models: names of the models that echo plays.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pace: float = 0.0,
        engine_args: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        replica: str = "echo",
        pool: str = "local",
        shared: Place | None = None,
        fail_points: str = "",
        models: Sequence[str] = ("echo",),
    ) -> None:
        self.data_dir = folder / "data"
        self.place = Place.of(self.data_dir) if shared is None else shared
        self.echo_log = folder / "echo.log"
        self.log = folder / "server.log"
        self.interruptions: list[Interruption] = []
        self.fail_points = fail_points
        self._arguments = ["--replica", replica, "--pool", pool, "--data-dir", str(self.data_dir)]
        if replica == "echo":
            file = folder / "models.yaml"
            arguments = {"seconds_per_row": pace, **(engine_args or {})}
            model = {"tokens_per_second": 100_000, "engine_args": arguments}
            file.write_text(yaml.safe_dump({"models": [{"name": name, **model} for name in models]}))
            self._arguments += ["--models", str(file)]
        self._port = free_port()
        self._environ = {
            **os.environ,
            "MILKRUN_ADMIN_KEY": KEY,
            "MILKRUN_ECHO_LOG": str(self.echo_log),
            **({"MILKRUN_DATABASE_URL": str(shared.database), "MILKRUN_BLOB_DIR": str(shared.blobs)} if shared else {}),
            **(environ or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address, the same after every start."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def is_alive(self) -> bool:
        """Whether its process has not ended."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()

    def start(self) -> float:
        """Start, and wait until it answers; returns the seconds that took."""
        began = time.monotonic()
        self.launch()
        self.await_ready()
        return time.monotonic() - began

    def launch(self) -> None:
        """Start without waiting."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "milkrun_engine", "serve", "--port", str(self._port), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self._environ, "MILKRUN_FAILPOINTS": self.fail_points},
            )

    def await_ready(self) -> None:
        """Wait until the launched process has written its address: it answers then."""
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_SECONDS
        while (told := EngineFile.read(self.data_dir)) is None or told.pid != process.pid:
            assert process.poll() is None, f"the server ended while it started:\n{self.tail()}"
            assert time.monotonic() < deadline, f"the server did not start:\n{self.tail()}"
            time.sleep(0.02)

    def kill(self) -> Interruption:
        """`kill -9`; returns what it held."""
        os.kill(self.pid, signal.SIGKILL)
        return self._ended()

    def await_death(self, point: str) -> Interruption:
        """Wait until it kills itself at a fail point; returns what it held."""
        assert self._process is not None
        assert -signal.SIGKILL == self._process.wait(DEATH_SECONDS), self.tail()
        assert point in self.log.read_text().splitlines()[-1], "it died elsewhere"
        return self._ended()

    def stop(self) -> Interruption:
        """SIGTERM, and wait; returns what it gave back."""
        os.kill(self.pid, signal.SIGTERM)
        return self._ended(released=True)

    def _ended(self, *, released: bool = False) -> Interruption:
        assert self._process is not None
        self._process.wait(STOP_SECONDS)
        self._process = None
        held = interruption(self.place, released=released)
        self.interruptions.append(held)
        return held

    def end(self) -> None:
        """Leave no process, whatever happened."""
        if self._process is None or self._process.poll() is not None:
            return
        children = psutil.Process(self.pid).children(recursive=True)
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in psutil.wait_procs(children, timeout=5)[1]:
            child.kill()

    def replicas(self) -> list[psutil.Process]:
        """The processes of its replicas."""
        children = psutil.Process(self.pid).children()
        return [child for child in children if any("replicas.worker" in part for part in child.cmdline())]

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3_000:] if self.log.exists() else ""

    @contextmanager
    def client(self) -> Iterator[mr.Milkrun]:
        """A client of it; works on across restarts."""
        with mr.Milkrun(self.url, KEY) as client:
            yield client

    def watched(self) -> FeedWatcher:
        """A reader of its change feed."""
        return FeedWatcher(self.url, KEY)

    def evidence(
        self,
        job_id: str,
        expected: Sequence[Answer] | None = None,
        *,
        feed: FeedWatcher | None = None,
        spare_executions: int = 0,
    ) -> Evidence:
        """All that is known of an ended job, for the checker."""
        return gather(
            self.url,
            KEY,
            job_id,
            self.place,
            echo_log=self.echo_log,
            expected=expected,
            interruptions=self.interruptions,
            sightings=feed.sightings if feed is not None else (),
            spare_executions=spare_executions,
        )


def wait_for(condition: Any, *, seconds: float = 30.0, what: str = "it") -> Any:
    """Wait until a condition holds; returns its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.01)
    return value


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
