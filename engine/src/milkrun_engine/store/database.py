"""
The SQLite database: one writer connection, some readers, and its clock.

WAL with `synchronous=FULL`: a transaction that returned is on disk. A writer begins with
`BEGIN IMMEDIATE`, so it never fails half-way for a lock. Time is read in SQL only
(`Database.now`), so that a lease never depends on a caller's clock; tests move it with
`clock_offset_seconds`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Float, create_engine, event, literal_column, select, type_coerce
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.sql import ColumnElement

_BUSY_MILLISECONDS = 30_000
_EPOCH_JULIAN_DAY = 2_440_587.5


class Database:
    """A file of SQLite; `write()` and `read()` are its transactions."""

    def __init__(self, path: Path, *, clock_offset_seconds: float = 0.0) -> None:
        self.path = path
        self.clock_offset_seconds = clock_offset_seconds
        self._writer = self._engine(readers=1, begin="BEGIN IMMEDIATE")
        self._reader = self._engine(readers=8, begin="BEGIN")

    def _engine(self, *, readers: int, begin: str) -> Engine:
        engine = create_engine(
            f"sqlite:///{self.path}",
            poolclass=QueuePool,
            pool_size=readers,
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
        """The database's clock, in seconds since 1970, as an SQL expression."""
        seconds = f"((julianday('now') - {_EPOCH_JULIAN_DAY}) * 86400.0 + {self.clock_offset_seconds})"
        return type_coerce(literal_column(seconds), Float())

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits on leaving, or rolls back on an exception."""
        with self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent snapshot."""
        with self._reader.begin() as connection:
            yield connection

    @property
    def writer(self) -> Engine:
        """The engine behind `write`, for migrations and for recorders in tests."""
        return self._writer

    def close(self) -> None:
        """Close all connections."""
        self._writer.dispose()
        self._reader.dispose()


def scalar(connection: Connection, expression: ColumnElement[Any]) -> Any:
    """Evaluate one SQL expression."""
    return connection.execute(select(expression)).scalar_one()
