"""
Airflow in a folder of its own, and one echo engine for all tests.

The folder is named before Airflow is imported: Airflow reads its configuration, and makes its database's
address, while it is imported.
"""

import atexit
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow_provider.stand_ins import Attempt, Store, connection

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


@pytest.fixture(autouse=True)
def _connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`milkrun_default` is the echo engine, where a test asks for that."""
    if "engine" in request.fixturenames:
        from airflow_provider_milkrun import hooks

        hooks._lookups.clear()
        monkeypatch.setenv("AIRFLOW_CONN_MILKRUN_DEFAULT", connection(request.getfixturevalue("engine")))


@pytest.fixture(autouse=True)
def _settled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheduler runs in this process that a trigger could be too quick for."""
    monkeypatch.setattr("airflow_provider_milkrun.triggers.SETTLE_SECONDS", 0.0)


@pytest.fixture
def client(engine: Any) -> Iterator[Any]:
    """A client of the engine, to look from the other side."""
    import milkrun as mr

    with mr.Milkrun(engine.url, engine.api_key, local=False) as client:
        yield client


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
