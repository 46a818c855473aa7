"""
A Prefect of our own and an engine over echo, once a session; nothing of either stays.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
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

from milkrun.local import EngineFile  # noqa: E402


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


@pytest.fixture
def credentials(engine: EngineFile) -> Any:
    """The block of that engine."""
    from prefect_milkrun import MilkrunCredentials

    return MilkrunCredentials.model_validate({"base_url": engine.url, "api_key": engine.api_key})


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
