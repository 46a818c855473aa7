"""
Airflow in a folder of its own, and one echo engine for all tests.

The folder is named before Airflow is imported: Airflow reads its configuration, and makes its database's
address, while it is imported.
"""

import atexit
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("airflow") else ["*"]

for _name in [name for name in os.environ if name.startswith("AIRFLOW")]:
    del os.environ[_name]
HOME = Path(tempfile.mkdtemp(prefix="milkrun-airflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ |= {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(HOME / "dags"),
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "NO_PROXY": "127.0.0.1",
}
BIN = Path(sys.executable).parent
START_SECONDS = 120.0

# Airflow's own: it warns of itself, and leaves sockets, event loops and database connections to the collector.
WARNINGS = (
    "ignore::DeprecationWarning:airflow.*",
    "ignore::FutureWarning:airflow.*",
    "ignore::PendingDeprecationWarning",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let Airflow's own warnings pass, in these tests alone."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning), append=False)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """An echo engine as a process of its own: `url` and `key`."""
    folder = tmp_path_factory.mktemp("engine")
    data = folder / "data"
    command = [BIN / "milkrun", "serve", "--replica", "echo", "--port", "0", "--data-dir", data]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        at = time.monotonic()
        while not (found := _read(data / "engine.json")):
            assert process.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() - at < START_SECONDS
            time.sleep(0.1)
        yield SimpleNamespace(url=found["url"], key=found["api_key"])
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def connection(engine: Any, **extra: Any) -> str:
    """The connection's JSON, as in an environment variable."""
    return json.dumps({"conn_type": "milkrun", "host": engine.url, "password": engine.key, "extra": extra})


@pytest.fixture(autouse=True)
def _connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`milkrun_default` is the echo engine, where a test asks for that."""
    if "engine" in request.fixturenames:
        from airflow_provider_milkrun import hooks

        hooks._lookups.clear()
        monkeypatch.setenv("AIRFLOW_CONN_MILKRUN_DEFAULT", connection(request.getfixturevalue("engine")))


@pytest.fixture
def client(engine: Any) -> Iterator[Any]:
    """A client of the engine, to look from the other side."""
    import milkrun as mr

    with mr.Milkrun(engine.url, engine.key, local=False) as client:
        yield client


class Store(dict):
    """A task's state store, as Airflow 3.3 has it."""

    def set(self, key: str, value: Any, retention: Any = None) -> None:
        json.dumps(value)
        self[key] = value


class Attempt:
    """A task instance: what operators ask of it."""

    def __init__(self, run_id: str, state: str = "running", map_index: int = -1) -> None:
        self.dag_id, self.task_id, self.run_id, self.map_index, self.try_number = "d", "t", run_id, map_index, 1
        self.log_url = f"http://airflow/dags/d/runs/{run_id}/tasks/t"
        self.state, self.xcoms = state, {}

    def xcom_push(self, key: str, value: Any) -> None:
        json.dumps(value)
        self.xcoms[key] = value

    def get_task_states(self, dag_id: str, run_ids: list[str], task_ids: list[str], map_index: int) -> Any:
        name = task_ids[0] if map_index < 0 else f"{task_ids[0]}_{map_index}"
        return {run_ids[0]: {name: self.state}}


@pytest.fixture
def attempt(request: pytest.FixtureRequest) -> Callable[..., dict[str, Any]]:
    """Makes contexts of attempts at one task instance; they share the store unless told otherwise."""
    store = Store()
    run_id = request.node.name

    def make(*, with_store: bool = True, **options: Any) -> dict[str, Any]:
        context: dict[str, Any] = {"ti": Attempt(run_id, **options), "outlet_events": {}}
        return {**context, "task_state_store": store} if with_store else context

    return make


@pytest.fixture(scope="session")
def database() -> None:
    """Airflow's own database, migrated."""
    done = subprocess.run([BIN / "airflow", "db", "migrate"], check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
