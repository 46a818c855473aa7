"""
The ledger as one object: open it, migrate it, use its nouns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.exc import DBAPIError

from milkrun_engine.domain.jobs import chunk_of_blob
from milkrun_engine.store.callbacks import Callbacks
from milkrun_engine.store.chunks import Chunks
from milkrun_engine.store.controls import Controls
from milkrun_engine.store.database import connect
from milkrun_engine.store.feed import Feed
from milkrun_engine.store.figures import Figures
from milkrun_engine.store.input_files import InputFiles
from milkrun_engine.store.installation import Installation
from milkrun_engine.store.jobs import Jobs
from milkrun_engine.store.migrations import migrate
from milkrun_engine.store.posts import Posts
from milkrun_engine.store.retries import Retries
from milkrun_engine.store.schema import chunks, input_files, jobs
from milkrun_engine.store.tenants import Tenants

_NAMES_AT_ONCE = 500  # a statement takes only so many parameters


class LedgerAway(ConnectionError):
    """The database does not answer, or not as one; the message says what it says."""


class Store:
    """
    All verbs of the ledger, by noun. Blocking, thread-safe; each verb is one transaction.

    Args:
        place: the SQLite file, or the URL of a Postgres database; made ready and migrated if need be.
        clock_offset_seconds: moves the ledger's clock, for tests.

    Raises:
        LedgerAway: the database does not answer.
        LedgerTooNew: a newer version of the engine made it.
    """

    def __init__(self, place: Path | str, *, clock_offset_seconds: float = 0.0) -> None:
        self.database = connect(place, clock_offset_seconds=clock_offset_seconds)
        try:
            migrate(self.database)
        except DBAPIError as error:
            self.close()
            why = next(iter(str(error.orig).splitlines()), type(error.orig).__name__)
            raise LedgerAway(f"the ledger can't be opened: {why} (`milkrun doctor` looks at it closely)") from error
        self.jobs = Jobs(self.database)
        self.controls = Controls(self.database)
        self.retries = Retries(self.database)
        self.chunks = Chunks(self.database)
        self.feed = Feed(self.database)
        self.callbacks = Callbacks(self.database)
        self.input_files = InputFiles(self.database)
        self.tenants = Tenants(self.database)
        self.installation = Installation(self.database, self.tenants)
        self.posts = Posts(self.database)
        self.figures = Figures(self.database)

    def named_blobs(self, names: Sequence[str]) -> set[str]:
        """Which of these blobs some row of the ledger names."""
        found: set[str] = set()
        with self.database.read() as connection:
            for start in range(0, len(names), _NAMES_AT_ONCE):
                some = names[start : start + _NAMES_AT_ONCE]
                for query in _naming(some):
                    found |= {name for row in connection.execute(query) for name in row} & set(some)
        return found

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def _naming(names: Sequence[str]) -> list[Select[Any]]:
    numbers: dict[str, list[int]] = {}
    for job_id, number in filter(None, map(chunk_of_blob, names)):
        numbers.setdefault(job_id, []).append(number)
    queries: list[Select[Any]] = [
        select(column).where(column.in_(names)) for column in (jobs.c.input_blob, input_files.c.blob)
    ]
    queries += [  # by job: SQLite finds no index for a list of pairs
        select(chunks.c.input_blob, chunks.c.result_blob).where(chunks.c.job_id == job_id, chunks.c.number.in_(some))
        for job_id, some in numbers.items()
    ]
    return queries
