"""
Postgres: many connections, many processes.

Writers run READ COMMITTED and take their locks in one order (see `schema.py`); what deadlocks all the same is tried
again. Readers see one snapshot (REPEATABLE READ). Neither waits for ever: not for a lock, not for a dead connection,
and not for one over which nothing comes although it looks alive.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import Any

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Connection, Engine, Float, create_engine, func, literal_column, make_url, select, type_coerce
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ColumnElement

from milkrun_engine.store.database import Database

_CONNECTIONS = 10
_STATEMENT_SECONDS = 5  # a statement of ours takes milliseconds; what waits longer waits for a lock or a disk
_ANSWER_SECONDS = 6.0  # the server says by then that the statement took too long, if it says anything
_IDLE_SECONDS = 10  # a process that stopped in the midst of a transaction must not hold its locks for long
_CONNECT_SECONDS = 5
_CHANNEL = "milkrun"
_LISTEN_SECONDS = 0.5  # so soon a listener sees that it is to stop
_PROBE_SECONDS = 5.0  # a listener that hears nothing asks whether anybody is there
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
        return create_engine(
            self._url,
            creator=self._connect,
            isolation_level=isolation_level,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,  # a connection that died in the pool is replaced before it is used
            hide_parameters=True,  # errors are logged, and a parameter may be a prompt
        )

    def _connect(self, *, autocommit: bool = False) -> "_Connection":
        settings = {
            "statement_timeout": f"{_STATEMENT_SECONDS}s",
            "idle_in_transaction_session_timeout": f"{_IDLE_SECONDS}s",
            "jit": "off",
        }
        return _Connection.connect(
            self._url.set(drivername="postgresql").render_as_string(hide_password=False),
            autocommit=autocommit,
            connect_timeout=_CONNECT_SECONDS,
            options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
            **_KEEPALIVES,
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

    def is_lost(self, error: DBAPIError) -> bool:
        """See the base."""
        return error.connection_invalidated

    def tell(self, messages: Sequence[str]) -> None:
        """See the base."""
        with self.writer.begin() as connection:
            for message in messages:
                connection.execute(select(func.pg_notify(_CHANNEL, message)))

    def listen(self, stopped: Event) -> Iterator[str]:
        """See the base."""
        with self._connect(autocommit=True) as connection:
            connection.execute(f"LISTEN {_CHANNEL}")
            yield ""
            asked = time.monotonic()
            while not stopped.is_set():
                for notice in connection.notifies(timeout=_LISTEN_SECONDS):
                    yield notice.payload
                if time.monotonic() - asked >= _PROBE_SECONDS:
                    connection.execute("SELECT 1")
                    asked = time.monotonic()

    @property
    def is_shared(self) -> bool:
        """See the base."""
        return True


class _Connection(psycopg.Connection[Any]):
    """Waits for an answer so long and no longer; one that did not come leaves it closed."""

    answer_seconds = _ANSWER_SECONDS

    def __del__(self, *_: Any) -> None:
        """A pool that is closed leaves what is in use to its user, who ends it here."""
        if hasattr(self, "pgconn"):
            self.pgconn.finish()

    @contextmanager
    def unhurried(self, seconds: float | None) -> Iterator[None]:
        """See `database.unhurried`."""
        for limit in ("statement_timeout", "idle_in_transaction_session_timeout"):
            self.execute(f"SET LOCAL {limit} = {0 if seconds is None else round(seconds * 1_000)}")
        self.answer_seconds = math.inf if seconds is None else seconds + 1.0
        try:
            yield
        finally:
            self.answer_seconds = _ANSWER_SECONDS

    def wait(self, gen: PQGen[Any], *arguments: Any, **options: Any) -> Any:
        """Perform what a step of the protocol waits for."""
        try:
            return super().wait(_bounded(gen, self.answer_seconds), *arguments, **options)
        except _NoAnswerError:
            self.close()
            raise


class _NoAnswerError(psycopg.OperationalError):
    pass


def _bounded(gen: PQGen[Any], seconds: float) -> PQGen[Any]:
    """Take the same steps; what drives them comes by several times a second, also while nothing has come."""
    until = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= until:
                raise _NoAnswerError(f"the database did not answer within {seconds:.0f} seconds")
            wanted = gen.send(ready)
    except StopIteration as finished:
        return finished.value
