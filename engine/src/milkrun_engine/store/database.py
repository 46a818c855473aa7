"""
What a database gives to the ledger: transactions, a clock, locks by name.

`sqlite.py` and `postgres.py` are the two; `connect` chooses. Time is read in SQL only (`Database.now`), so that a
lease never depends on a caller's clock; tests move it with `clock_offset_seconds`.
"""

import functools
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ColumnElement

from milkrun_engine.domain.errors import DiskFull, OutcomeUnknown

P = ParamSpec("P")
R = TypeVar("R")
_TRIES = 8
_PAUSE_SECONDS = 0.02


class Database(ABC):
    """A database; `write()` and `read()` are its transactions."""

    def __init__(self, *, clock_offset_seconds: float = 0.0) -> None:
        self.clock_offset_seconds = clock_offset_seconds

    @property
    @abstractmethod
    def now(self) -> ColumnElement[float]:
        """The database's clock, in seconds since 1970, as an SQL expression that is one value a statement."""

    @property
    @abstractmethod
    def writer(self) -> Engine:
        """The engine behind `write`, for migrations and for recorders in tests."""

    @property
    @abstractmethod
    def reader(self) -> Engine:
        """The engine behind `read`."""

    @abstractmethod
    def lock(self, connection: Connection, name: str) -> None:
        """Let one transaction at a time go on from here, of those that lock this name; before any row's lock."""

    @abstractmethod
    def is_conflict(self, error: DBAPIError) -> bool:
        """Whether a transaction was rolled back for the sake of others, so that it may be tried again as it is."""

    @abstractmethod
    def is_disk_full(self, error: DBAPIError) -> bool:
        """Whether the database's disk takes no more: it is full, or fails."""

    def is_lost(self, error: DBAPIError) -> bool:  # noqa: ARG002 (a file has no connection to lose)
        """Whether the database went away before it answered."""
        return False

    def tell(self, messages: Sequence[str]) -> None:  # noqa: B027 (a database of one process has nobody to tell)
        """Send messages to every process that listens; may lose some, never waits for anybody."""

    def listen(self, stopped: Event) -> Iterator[str]:
        """
        Yield the messages of all processes until `stopped`, and an empty one when it begins to hear them. Blocking.

        Raises when the connection is lost.
        """
        stopped.wait()
        yield from ()

    @property
    def is_shared(self) -> bool:
        """Whether other processes may use it too."""
        return False

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """
        A transaction that commits on leaving, or rolls back on an exception.

        Raises:
            DiskFull: the database's disk takes no more.
            OutcomeUnknown: the database went away while it committed; any other error means that nothing was written.
        """
        is_whole = False
        try:
            with self.writer.begin() as connection:
                yield connection
                is_whole = True
        except DBAPIError as error:
            if self.is_disk_full(error):
                raise DiskFull(f"the ledger's disk does not take a change ({type(error.orig).__name__})") from error
            if is_whole and self.is_lost(error):
                raise OutcomeUnknown("the ledger was lost at a commit, which may have happened; ask again") from error
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent snapshot."""
        with self.reader.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.writer.dispose()
        self.reader.dispose()


#: for statements that touch all chunks of a job: one of ten million rows has some hundred thousand
LARGE_JOB_SECONDS = 60.0


@contextmanager
def unhurried(connection: Connection, seconds: float | None = None) -> Iterator[None]:
    """For this connection's transaction, let statements take longer than others: so long, or as long as they need."""
    lift = getattr(connection.connection.driver_connection, "unhurried", None)  # a file has no deadlines
    with lift(seconds) if lift is not None else nullcontext():
        yield


class UsesDatabase(Protocol):
    """A noun of the ledger."""

    _database: Database


N = TypeVar("N", bound=UsesDatabase)


def transaction(verb: Callable[Concatenate[N, P], R]) -> Callable[Concatenate[N, P], R]:
    """
    Run a verb that is one transaction again if the database gave it up for others' sake (a deadlock).

    Only for verbs that do nothing outside of their transaction.
    """

    @functools.wraps(verb)
    def tried(self: N, /, *args: P.args, **kwargs: P.kwargs) -> R:
        for again in range(_TRIES):
            try:
                return verb(self, *args, **kwargs)
            except DBAPIError as error:
                if again == _TRIES - 1 or not self._database.is_conflict(error):
                    raise
            time.sleep(random.uniform(0.5, 1.0) * _PAUSE_SECONDS * 2**again)
        raise AssertionError  # the last try returned or raised

    return tried


def scalar(connection: Connection, expression: ColumnElement[Any]) -> Any:
    """Evaluate one SQL expression."""
    return connection.execute(select(expression)).scalar_one()


def connect(place: Path | str, *, clock_offset_seconds: float = 0.0) -> Database:
    """
    Open the database of a ledger.

    Args:
        place: a file of SQLite, or the URL of a Postgres database (`postgresql://…`).
    """
    if isinstance(place, Path):
        from milkrun_engine.store.sqlite import SqliteDatabase

        return SqliteDatabase(place, clock_offset_seconds=clock_offset_seconds)
    from milkrun_engine.store.postgres import PostgresDatabase

    return PostgresDatabase(place, clock_offset_seconds=clock_offset_seconds)
