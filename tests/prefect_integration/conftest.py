"""
A Prefect of our own and an engine over echo, once a session; nothing of either stays.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Prefect reads its settings when it is imported.
_HOME = tempfile.mkdtemp(prefix="milkrun-prefect-")
for _name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[_name]
os.environ |= {
    "PREFECT_HOME": _HOME,
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}

import pytest  # noqa: E402

START_SECONDS = 60.0
STOP_SECONDS = 30.0
_ENGINE = (sys.executable, "-m", "milkrun_engine", "serve", "--replica", "echo", "--pool", "local")


def pytest_unconfigure() -> None:
    """The home goes last: Prefect's own threads write to it until then."""
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """Prefect's own warnings, each with its reason; ours stay errors."""
    for line in (
        # Prefect 3.8 imports parts of libraries that those have deprecated since.
        "ignore::DeprecationWarning:prefect.*",
        "ignore::pydantic.warnings.PydanticDeprecatedSince20",
        "ignore::pydantic.warnings.PydanticDeprecatedSince211",
        # Its test server, its clients and its event sockets are closed by the garbage collector.
        "ignore:.*socket.*:ResourceWarning",
        "ignore:.*unclosed.*:ResourceWarning",
        "ignore:subprocess .* is still running:ResourceWarning",
    ):
        config.addinivalue_line("filterwarnings", line)


@contextmanager
def running_engine(folder: Path, **environ: str) -> Iterator[dict[str, Any]]:
    """An engine over echo as a process of its own; gives what its `engine.json` says."""
    with (folder / "engine.log").open("ab") as log:
        process = subprocess.Popen(
            [*_ENGINE, "--port", "0", "--data-dir", str(folder / "data")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environ},
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        told = folder / "data" / "engine.json"
        while not told.exists():
            assert process.poll() is None, (folder / "engine.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "the engine did not start"
            time.sleep(0.05)
        yield json.loads(told.read_text())
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """An engine over echo: its url and key."""
    with running_engine(tmp_path_factory.mktemp("engine")) as told:
        yield told


@pytest.fixture
def credentials(engine: dict[str, Any]) -> Any:
    """The block of that engine."""
    from prefect_milkrun import MilkrunCredentials

    return MilkrunCredentials.model_validate({"base_url": engine["url"], "api_key": engine["api_key"]})


@pytest.fixture
def client(credentials: Any) -> Iterator[Any]:
    """A client of that engine."""
    with credentials.get_client() as client:
        yield client


@pytest.fixture(scope="session")
def harness() -> Iterator[None]:
    """Prefect's own test server on a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield
