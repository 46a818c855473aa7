"""
The words for where a job and a row stand, shared by client and engine.

Plain string enums: they go on the wire, into the database and onto the page unchanged.
"""

from enum import StrEnum


class JobKind(StrEnum):
    """What a job asks of its model."""

    generate = "generate"  #: text (chat or completion), optionally constrained by a schema
    embed = "embed"  #: one vector a row


class JobStatus(StrEnum):
    """
    Where a job stands; it only ever moves forward.

    ``preparing → queued → running → succeeded | failed | cancelled | expired``
    """

    preparing = "preparing"  #: no window is committed yet; the preparer moves it on
    queued = "queued"  #: rows wait for a lease; the dispatcher moves it on
    running = "running"  #: a chunk was leased at least once; the last commit moves it on
    succeeded = "succeeded"  #: every row has an outcome, failed rows included
    failed = "failed"  #: no row could run, or the input became unreadable part-way
    cancelled = "cancelled"  #: stopped by a person, or replaced; committed rows stay readable
    expired = "expired"  #: its completion window closed; committed rows stay readable

    @property
    def is_terminal(self) -> bool:
        """Whether the status can never change again."""
        return self in TERMINAL


TERMINAL = frozenset({JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled, JobStatus.expired})


class RowStatus(StrEnum):
    """How a row ended."""

    succeeded = "succeeded"  #: it has an output
    failed = "failed"  #: it has a typed error instead


class RowErrorCode(StrEnum):
    """Why a row has no output: the one closed list."""

    invalid_row = "invalid_row"  #: the row itself can't be a request: bad JSON, a missing column, a bad parameter
    context_length_exceeded = "context_length_exceeded"  #: prompt and answer don't fit the model's context
    model_not_found = "model_not_found"  #: the row names a model that this engine does not have
    model_unavailable = "model_unavailable"  #: the model could not be loaded for too long
    schema_rejected = "schema_rejected"  #: the grammar compiler refused the output schema
    truncated = "truncated"  #: a schema was asked for and the answer ended before it was complete
    engine_crash = "engine_crash"  #: the row killed its replica twice while running alone
    timeout = "timeout"  #: the row ran longer than it may
    cancelled = "cancelled"  #: the job was cancelled before the row was decided
    expired = "expired"  #: the job expired before the row was decided
    content_blocked = "content_blocked"  #: a content filter refused prompt or answer
    internal = "internal"  #: the engine broke a promise; please report it


class Reuse(StrEnum):
    """What a submit does when its idempotency key already has a job."""

    inputs_match = "inputs_match"  #: a live or succeeded job with equal inputs is returned
    always = "always"  #: a live or succeeded job is returned, whatever its inputs
    failed_rows = "failed_rows"
    #: as inputs_match, but where that job ended otherwise, or with more failed rows than the submit's
    #: `max_failed_rows`, a new job runs only its rows without a result
    never = "never"  #: a new job always takes the key; the old one is cancelled if it is alive


class OnMismatch(StrEnum):
    """What a submit does when its key's job has other inputs."""

    fail = "fail"  #: refuse with 422 `idempotency_mismatch`
    replace = "replace"  # type: ignore[assignment]  # str has a method of that name
    #: cancel the old job if it is alive; the new one takes the key


class CallbackKind(StrEnum):
    """What the engine sends when a job has ended; a wake-up hint, never data."""

    generic = "generic"  #: a signed POST (Standard Webhooks) to a receiver of the user's
    prefect_resume = "prefect_resume"  #: resume a suspended Prefect flow run; its server's reply is read


class CallbackState(StrEnum):
    """Where a callback stands."""

    pending = "pending"  #: the engine sends it when it is due
    delivered = "delivered"  #: the receiver took it
    given_up = "given_up"  #: the receiver wants none, or did not take it for too long; it may be replayed


class FeedEvents(StrEnum):
    """Which changes of a job a reader of the change feed hears about."""

    end = "end"  #: the job became terminal
    status = "status"  #: its status changed
    progress = "progress"  #: its status or its counts changed (at most once a second)


class InputFormat(StrEnum):
    """The formats of an uploaded input file."""

    jsonl = "jsonl"  #: one JSON value a line: a string, a list of chat messages, or an object
    csv = "csv"  #: UTF-8 with a header line; every value is text
    tsv = "tsv"  #: as csv, separated by tabs
    parquet = "parquet"  #: one row group at a time


class ResultFormat(StrEnum):
    """The formats in which results are exported."""

    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"
