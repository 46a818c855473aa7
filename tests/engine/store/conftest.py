"""
One behavioural suite for both databases: every test that asks for a world runs on each.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from fix_store import World

Begin = Callable[[Path], AbstractContextManager[World]]


@pytest.fixture(params=["sqlite", "postgres"])
def begin(request: pytest.FixtureRequest) -> Begin:
    """Make new ledgers with the default tenant, each with its blobs in a folder."""
    if request.param == "sqlite":
        empty: Path = request.getfixturevalue("empty_ledger")

        @contextmanager
        def on_sqlite(folder: Path) -> Iterator[World]:
            shutil.copy(empty, folder / "milkrun.db")
            world = World.open(folder)
            yield world
            world.close()

        return on_sqlite
    server = request.getfixturevalue("postgres")

    @contextmanager
    def on_postgres(folder: Path) -> Iterator[World]:
        url = server.database()
        world = World.open(folder, url)
        yield world
        world.close()
        server.drop(url)

    return on_postgres


@pytest.fixture
def world(begin: Begin, tmp_path: Path) -> Iterator[World]:
    """One new ledger."""
    with begin(tmp_path) as opened:
        yield opened
