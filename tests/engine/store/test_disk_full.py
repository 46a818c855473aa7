"""
A ledger whose disk is full says so by one error, on either database, and loses nothing.
"""

import pytest
from fix_store import World
from sqlalchemy import text

from milkrun_engine.domain.errors import DiskFull
from milkrun_engine.store.sqlite import SqliteDatabase


def fill(world: World, code: str) -> None:
    """Make a write fail as on a full disk: SQLite on a bound of its own, Postgres by raising its code."""
    with world.store.database.write() as connection:
        if isinstance(world.store.database, SqliteDatabase):
            pages = connection.execute(text("PRAGMA page_count")).scalar_one()
            connection.execute(text(f"PRAGMA max_page_count = {pages}"))
            connection.execute(text("CREATE TABLE more (x)"))
        else:
            connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"))


@pytest.mark.parametrize("code", ["53100", "58030"])
def test_a_full_disk_is_told_as_such(world: World, code: str) -> None:
    job_id = world.submit(8).job.id
    with pytest.raises(DiskFull, match="the ledger's disk"):
        fill(world, code)
    assert job_id == world.store.jobs.get("default", job_id).id
