"""
Postgres: many connections, many processes.

Writers run READ COMMITTED and take their locks in one order (see `schema.py`); what deadlocks all the same is tried
again. Readers see one snapshot (REPEATABLE READ). Neither waits for ever: not for a lock, not for a dead connection.
"""

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, Float, create_engine, func, literal_column, make_url, select, type_coerce
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ColumnElement

from milkrun_engine.store.database import Database

_CONNECTIONS = 10
_LOCK_TIMEOUT = "30s"
_IDLE_TIMEOUT = "60s"  # a process that stopped in the midst of a transaction must not hold its locks for ever
_CONNECT_SECONDS = 10
_CHANNEL = "milkrun"
_LISTEN_SECONDS = 0.5  # so soon a listener sees that it is to stop
_CONFLICTS = {"40001", "40P01"}  # serialization_failure, deadlock_detected
_DISK_ERRORS = {"53100", "58030"}  # disk_full, io_error
#: a peer that is silently gone is noticed within half a minute, not after the kernel's two hours
_KEEPALIVES: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


class PostgresDatabase(Database):
    """A database of a Postgres server (15 or newer)."""

    def __init__(self, url: str, *, clock_offset_seconds: float = 0.0) -> None:
        super().__init__(clock_offset_seconds=clock_offset_seconds)
        self._url = make_url(url.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg")
        self._writer = self._engine("READ COMMITTED")
        self._reader = self._engine("REPEATABLE READ")

    def _engine(self, isolation_level: str) -> Engine:
        settings = {"lock_timeout": _LOCK_TIMEOUT, "idle_in_transaction_session_timeout": _IDLE_TIMEOUT, "jit": "off"}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        return create_engine(
            self._url,
            isolation_level=isolation_level,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,  # a connection that died in the pool is replaced before it is used
            hide_parameters=True,  # errors are logged, and a parameter may be a prompt
            connect_args={"connect_timeout": _CONNECT_SECONDS, "options": options, **_KEEPALIVES},
        )

    @property
    def now(self) -> ColumnElement[float]:
        """See the base."""
        seconds = f"(extract(epoch from statement_timestamp())::float8 + {self.clock_offset_seconds})"
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
        """See the base; names with one hash only wait for each other."""
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))

    def is_conflict(self, error: DBAPIError) -> bool:
        """See the base."""
        return getattr(error.orig, "sqlstate", None) in _CONFLICTS

    def is_disk_full(self, error: DBAPIError) -> bool:
        """See the base."""
        return getattr(error.orig, "sqlstate", None) in _DISK_ERRORS

    def tell(self, messages: Sequence[str]) -> None:
        """See the base."""
        with self.writer.begin() as connection:
            for message in messages:
                connection.execute(select(func.pg_notify(_CHANNEL, message)))

    def listen(self, stopped: Event) -> Iterator[str]:
        """See the base."""
        plain = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True, connect_timeout=_CONNECT_SECONDS, **_KEEPALIVES) as connection:
            connection.execute(f"LISTEN {_CHANNEL}")
            while not stopped.is_set():
                for notice in connection.notifies(timeout=_LISTEN_SECONDS):
                    yield notice.payload

    @property
    def is_shared(self) -> bool:
        """See the base."""
        return True
