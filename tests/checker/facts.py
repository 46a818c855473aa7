"""
The facts that the checker judges, as plain values: what a test may tamper with to prove a rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What a reader of results compares: how a row ended, without the effort that it took."""

    key: str | None
    status: str
    code: str | None
    output: Any


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a result, as a page, an export or a chunk file has it."""

    index: int
    key: str | None
    status: str
    code: str | None
    message: str | None
    output: Any  #: the JSON value
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    attempts: int

    @property
    def answer(self) -> Answer:
        """What must be the same in every run."""
        return Answer(self.key, self.status, self.code, self.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A chunk of the ledger, and its result file as it lies on disk."""

    number: int
    window: int
    state: str
    rows: int
    first_index: int
    lease_epoch: int
    attempts: int
    committed_at: float | None
    result_sha256: str | None
    rows_failed: int
    errors: Mapping[str, int]
    slots: Sequence[int]  #: the indices of its rows, by slot, from its input file
    file_sha256: str | None = None  #: of the bytes on disk; None when there is no file
    results: Sequence[Row] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A window of the ledger; `places` says for each of its rows (chunk's ordinal, slot)."""

    number: int
    first_index: int
    rows: int
    places: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """One job in the ledger; `job` is its row as it stands there."""

    job: Mapping[str, Any]
    windows: Sequence[Window]
    chunks: Sequence[Chunk]

    @property
    def copied(self) -> frozenset[int]:
        """The rows that a retry took over from its parent: committed without a lease, and not for being refused."""
        if self.job["rows_from"] is None:
            return frozenset()
        born = [chunk for chunk in self.chunks if chunk.state == "committed" and chunk.attempts == 0]
        return frozenset(row.index for chunk in born for row in chunk.results if row.status == "succeeded")


@dataclass(frozen=True, slots=True)
class Execution:
    """One row that echo began, from its log."""

    index: int
    chunk: int
    epoch: int
    pid: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """The death or stop of a server: which chunks were leased and uncommitted, by (job, chunk)."""

    at: float
    leased: Mapping[tuple[str, int], tuple[int, int]]  #: the lease's epoch and the chunk's rows

    def rows(self, job_id: str) -> int:
        """How many of a job's rows may run again because of it."""
        return sum(rows for (job, _), (_, rows) in self.leased.items() if job == job_id)


class Sighting(NamedTuple):
    """A job as the change feed showed it; an answer without jobs is one of no job."""

    job_id: str | None
    status: str
    decided: int
    number: int  #: of the feed's cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of one job."""

    job: Mapping[str, Any]  #: as the API tells it
    rows: Sequence[Row]  #: from the pages of results, in their order
    exports: Mapping[str, Sequence[Row]]  #: by format
    ledger: Ledger
    executions: Sequence[Execution] | None = None  #: of this job; None without a log
    interruptions: Sequence[Interruption] = ()
    sightings: Sequence[Sighting] = ()
    expected: Sequence[Answer] | None = None  #: by index: a reference run, or a function of the input
    spare_executions: int = 0  #: rows that may have run again because a replica died
    cursors: Sequence[int] = field(default=())  #: the feed's in the order in which they came; none: nobody watched
