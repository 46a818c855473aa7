"""
SQLite: one writer connection, some readers, one process.

WAL with `synchronous=FULL`: a transaction that returned is on disk. A writer begins with `BEGIN IMMEDIATE`, so it
never fails half-way for a lock, and nobody writes beside it.
"""

import sqlite3
from pathlib import Path

from sqlalchemy import Connection, Engine, Float, create_engine, event, literal_column, type_coerce
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.sql import ColumnElement

from milkrun_engine.store.database import Database

_BUSY_MILLISECONDS = 30_000
_EPOCH_JULIAN_DAY = 2_440_587.5
_READERS = 8
_DISK_ERRORS = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


class SqliteDatabase(Database):
    """A file of SQLite."""

    def __init__(self, path: Path, *, clock_offset_seconds: float = 0.0) -> None:
        super().__init__(clock_offset_seconds=clock_offset_seconds)
        self.path = path
        self._writer = self._engine(connections=1, begin="BEGIN IMMEDIATE")
        self._reader = self._engine(connections=_READERS, begin="BEGIN")

    def _engine(self, *, connections: int, begin: str) -> Engine:
        engine = create_engine(
            f"sqlite:///{self.path}",
            poolclass=QueuePool,
            pool_size=connections,
            max_overflow=0,
            hide_parameters=True,  # errors are logged, and a parameter may be a prompt
            connect_args={"check_same_thread": False, "timeout": _BUSY_MILLISECONDS / 1_000},
        )

        @event.listens_for(engine, "connect")
        def _configure(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
            # SQLAlchemy's own recipe: the driver must not begin transactions by itself.
            connection.isolation_level = None
            cursor = connection.cursor()
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                "foreign_keys=ON",
                f"busy_timeout={_BUSY_MILLISECONDS}",
                "temp_store=MEMORY",
            ):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    @property
    def now(self) -> ColumnElement[float]:
        """See the base."""
        seconds = f"((julianday('now') - {_EPOCH_JULIAN_DAY}) * 86400.0 + {self.clock_offset_seconds})"
        return type_coerce(literal_column(seconds), Float())

    @property
    def writer(self) -> Engine:
        """See the base."""
        return self._writer

    @property
    def reader(self) -> Engine:
        """See the base."""
        return self._reader

    def lock(self, connection: Connection, name: str) -> None:
        """Nothing to do: there is one writer."""

    def is_conflict(self, error: DBAPIError) -> bool:  # noqa: ARG002 (the base's)
        """Never: a transaction waits at its beginning."""
        return False

    def is_disk_full(self, error: DBAPIError) -> bool:
        """See the base."""
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _DISK_ERRORS  # the rest is SQLite's detail
