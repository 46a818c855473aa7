"""
A real engine without a model, as a process of its own: for the tests of whoever only talks to one.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from milkrun.local import EngineFile

_START_SECONDS = 120.0
_STOP_SECONDS = 30.0


@contextmanager
def echo_engine(folder: Path, **environ: str) -> Iterator[EngineFile]:
    """Run an engine over echo in a folder; gives its address and key."""
    data = folder / "data"
    command = [sys.executable, "-m", "milkrun_engine", "serve", "--replica", "echo", "--port", "0"]
    with (folder / "engine.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(data)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environ},
            start_new_session=True,
            # A test run in the background hands down that SIGINT is ignored, and the engine's children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while (found := EngineFile.read(data)) is None or found.pid != process.pid:
            assert process.poll() is None, (folder / "engine.log").read_text()[-3_000:]
            assert time.monotonic() < deadline, "the engine did not start"
            time.sleep(0.05)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineFile]:
    """One engine over echo for all tests of an orchestrator."""
    with echo_engine(tmp_path_factory.mktemp("engine")) as found:
        yield found
