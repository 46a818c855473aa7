"""
Errors that the use cases raise; each dialect renders them by `code`, never by message.
"""

from typing import ClassVar


class EngineError(Exception):
    """Base of all errors that a caller may see; the message says what to do next."""

    code: ClassVar[str] = "internal"


class InvalidRequest(EngineError):
    """The request can't be done as it stands."""

    code = "invalid_request"


class MissingColumn(InvalidRequest):
    """The prompt template or the key names a column that the input does not have."""

    code = "missing_column"


class UnknownModel(InvalidRequest):
    """No model of that name and kind is declared."""

    code = "unknown_model"


class Unauthenticated(EngineError):
    """No API key, or one that is not known."""

    code = "unauthenticated"


class NotFound(EngineError):
    """No such thing in this tenant."""

    code = "not_found"


class IdempotencyMismatch(EngineError):
    """The idempotency key belongs to a job with other inputs."""

    code = "idempotency_mismatch"


class InputsDiffer(EngineError):
    """Attach named other inputs than the key's job has."""

    code = "inputs_differ"


class StaleClaim(EngineError):
    """A later attempt owns the job now."""

    code = "stale_claim"


class NotEnded(EngineError):
    """The job is alive, and this is done to ended jobs only."""

    code = "not_ended"


class AlreadyEnded(EngineError):
    """The job is over, and this is done to live jobs only."""

    code = "already_ended"


class CallbackDelivered(EngineError):
    """The callback was delivered, and what it was made of is forgotten."""

    code = "callback_delivered"


class NothingToRetry(EngineError):
    """Every row of the job has a result."""

    code = "nothing_to_retry"


class InputDeleted(EngineError):
    """The job's input is not there any more, so that no row can run again."""

    code = "input_deleted"


class CursorLost(EngineError):
    """The change feed does not know the cursor: read the jobs by id and start from a new one."""

    code = "cursor_lost"


class InputTooLarge(EngineError):
    """The upload or body is larger than this engine takes."""

    code = "input_too_large"


class DiskFull(EngineError):
    """The engine's disk takes no more bytes: it is full, or fails."""

    code = "disk_full"


class OutcomeUnknown(EngineError):
    """The ledger's connection was lost at a commit, which may have happened: ask again, and you are told."""

    code = "outcome_unknown"


class ShuttingDown(EngineError):
    """The engine is stopping; ask again in a moment."""

    code = "shutting_down"


class BlobCorrupt(EngineError):
    """A blob is missing, or its bytes are not those that the ledger names."""

    code = "integrity"


class InputUnreadable(Exception):
    """The input file can't be read on from some point; ends its job as `failed`."""
