"""
The numbered migrations add up to the tables that the code knows.
"""

from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fix_store import World
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from milkrun_engine.store import Store
from milkrun_engine.store.database import connect, unhurried
from milkrun_engine.store.migrations import migrate
from milkrun_engine.store.schema import metadata
from milkrun_engine.store.sqlite import SqliteDatabase


def partial_indexes(store: Store) -> dict[str, str]:
    """SQL of the partial indexes, which Alembic's comparison does not look into."""
    table = (
        "sqlite_master WHERE type = 'index' AND" if isinstance(store.database, SqliteDatabase) else "pg_indexes WHERE"
    )
    columns = "name, sql" if isinstance(store.database, SqliteDatabase) else "indexname, indexdef"
    with store.database.read() as connection:
        query = text(f"SELECT {columns} FROM {table} {columns.split()[1]} LIKE '% WHERE %'")
        return {name: " ".join(sql.split()) for name, sql in connection.execute(query)}


def test_migrations_make_exactly_the_schema(world: World) -> None:
    with world.store.database.writer.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_partial_indexes_are_the_schemas_too(world: World, tmp_path: Path) -> None:
    from_migrations = partial_indexes(world.store)
    with world.store.database.writer.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            table.drop(connection)
        metadata.create_all(connection)
    assert partial_indexes(world.store) == from_migrations
    names = "callbacks_due chunks_ready chunks_leased jobs_unprepared jobs_unfinished jobs_expiring jobs_paused"
    assert {f"ix_{name}" for name in names.split()} == set(from_migrations)


def test_upgrading_again_changes_nothing(world: World) -> None:
    job_id = world.prepared(8)
    before = world.job(job_id)
    migrate(world.store.database)
    migrate(world.store.database)
    assert before == world.job(job_id)


def test_every_table_names_its_tenant() -> None:
    """Whose row it is stands in the row, but for what an installation has of its own and the tenants themselves."""
    without = {table.name for table in metadata.sorted_tables if "tenant_id" not in table.columns}
    assert {"tenants", "secrets", "posts"} == without


def test_commits_are_on_disk_before_they_return(tmp_path: Path) -> None:
    store = Store(tmp_path / "milkrun.db")
    with store.database.writer.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}


def test_a_migration_may_take_longer_than_a_statement(postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Postgres gives other statements some seconds, by its own clock and by ours."""
    monkeypatch.setattr("milkrun_engine.store.postgres._STATEMENT_SECONDS", 1)
    monkeypatch.setattr("milkrun_engine.store.postgres._Connection.answer_seconds", 1.0)
    url = postgres.database()
    database = connect(url)
    try:
        with database.writer.connect() as connection:
            with unhurried(connection):
                connection.exec_driver_sql("SELECT pg_sleep(2)")
                connection.commit()
            with pytest.raises(DBAPIError):
                connection.exec_driver_sql("SELECT pg_sleep(20)")
    finally:
        database.close()
        postgres.drop(url)
