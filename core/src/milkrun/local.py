"""
The one local engine of this user: find it, or start it.

The engine writes `engine.json` into its data directory; a client trusts that file only if
the address in it answers with the instance id in it. Starting happens under a file lock,
so any number of clients together start one engine. It runs in a session of its own and
outlives the client that started it.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self
from uuid import uuid4

import httpx

from milkrun.exceptions import LocalEngineError

START_SECONDS = 60.0
_LOG_LINES = 15
IN_USE_EXIT = 75  #: the engine's exit code when another one has its data directory (EX_TEMPFAIL of sysexits.h)
_children: dict[int, subprocess.Popen[bytes]] = {}  # engines that this process started; none of them is waited for


@atexit.register
def _let_go() -> None:
    """An engine outlives who started it, on purpose: no warning at the end of Python that it runs."""
    for process in _children.values():
        if process.poll() is None:
            process.returncode = 0


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return `MILKRUN_DATA_DIR`, or `milkrun` in the XDG data home."""
    if chosen := environ.get("MILKRUN_DATA_DIR"):
        return Path(chosen).expanduser()
    home = environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "milkrun"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """What a running engine says of itself in `engine.json`, readable by its user alone."""

    instance_id: str  #: new at each start
    url: str
    api_key: str = field(repr=False)
    pid: int
    version: str

    @classmethod
    def read(cls, data_dir: Path) -> Self | None:
        """Return the file's facts; None if there is no file, or not one of ours."""
        try:
            return cls(**json.loads((data_dir / "engine.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, data_dir: Path) -> None:
        """Replace `engine.json` in one step: a reader sees the old facts or the new ones."""
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = data_dir / f".engine-{uuid4().hex}.json"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(json.dumps(asdict(self)).encode())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(data_dir / "engine.json")


def find(data_dir: Path) -> EngineFile | None:
    """Return the engine of this data directory if it runs and answers as the one that wrote the file."""
    known = EngineFile.read(data_dir)
    if known is None:
        return None
    try:
        answer = httpx.get(f"{known.url}/healthz", timeout=3.0, trust_env=False)
        trusted = answer.is_success and answer.json()["instance_id"] == known.instance_id
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    return known if trusted else None


def ensure(data_dir: Path, *, start_seconds: float = START_SECONDS) -> EngineFile:
    """
    Find this data directory's engine, or start it and wait until it answers.

    Blocking; safe to call from many threads and processes at once.

    Raises:
        LocalEngineError: the engine is not installed, ended while starting, or took too long.
    """
    if found := find(data_dir):
        return found
    if importlib.util.find_spec("milkrun_engine") is None:
        raise LocalEngineError(
            "No engine address is set and no engine is installed here. Set MILKRUN_URL (and MILKRUN_API_KEY) "
            'to use a shared engine, or run: pip install "milkrun-engine[ray,vllm]"'
        )
    deadline = time.monotonic() + start_seconds
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _start_lock(data_dir, deadline):
        return find(data_dir) or _start(data_dir, deadline)


@contextlib.contextmanager
def _start_lock(data_dir: Path, deadline: float) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:
        raise LocalEngineError("The engine runs on Linux. Set MILKRUN_URL to use one from here.") from None
    with (data_dir / "start.lock").open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LocalEngineError(
                        f"Another process has been starting the engine for too long. See {data_dir}/engine.log."
                    ) from None
                time.sleep(0.05)
        yield


def _start(data_dir: Path, deadline: float) -> EngineFile:
    log = data_dir / "engine.log"
    while True:
        with log.open("ab") as output:
            begins_at = output.tell()
            # The data directory as working directory: a user's own `ray.py` must not shadow a library of the engine.
            process = subprocess.Popen(
                [sys.executable, "-m", "milkrun_engine", "serve", "--local", "--data-dir", str(data_dir.absolute())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=data_dir,
                start_new_session=True,
            )
        _children[process.pid] = process
        while time.monotonic() < deadline and process.poll() is None:
            if found := find(data_dir):
                return found
            time.sleep(0.1)
        if process.poll() is None:
            process.terminate()
            raise LocalEngineError(f"The local engine did not answer in time and was stopped. {_tail(log, begins_at)}")
        if found := find(data_dir):
            return found
        # Another engine that is just starting or stopping has the directory: look again until it answers or is gone.
        if process.returncode != IN_USE_EXIT or time.monotonic() >= deadline:
            raise LocalEngineError(
                f"The local engine ended while it started (exit code {process.returncode}). {_tail(log, begins_at)}"
            )
        time.sleep(0.5)


def _tail(log: Path, begins_at: int) -> str:
    with log.open("rb") as file:
        file.seek(begins_at)
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join([f"The end of {log}:", *lines[-_LOG_LINES:]])
