"""
Our exception tree.

MilkrunError                       retryable: bool (class attribute)
├─ RequestError                    no answer: ConnectError, RequestTimeout            retryable
├─ ResponseError                   status, code, request_id, retry_after
│  ├─ InvalidRequest 400/422 · AuthenticationError 401 · PermissionDenied 403 · NotFound 404
│  ├─ Conflict 409 · TooLarge 413
│  └─ RateLimited 429 · EngineUnavailable 5xx                                         retryable
├─ UnexpectedResponse              an answer that is not ours (proxy page, wrong URL)
├─ LocalEngineError                no local engine could be found or started
├─ WaitTimeout                     we stopped waiting; the job goes on (carries job)
└─ JobError                        carries job: JobFailed · JobCancelled · JobExpired · TooManyRowsFailed

A bad row is data, never an exception. Facts are attributes, and every error survives `pickle`.
"""

from typing import Any, ClassVar

from milkrun.wire import Job


class MilkrunError(Exception):
    """Whatever goes wrong here; the message says what happened, to which job, and what to do next."""

    retryable: ClassVar[bool] = False  #: whether the same call may succeed later

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own pickling calls the class with `args` alone, which loses keyword-only facts.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[MilkrunError], args: tuple[Any, ...], facts: dict[str, Any]) -> MilkrunError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(facts)
    return error


class RequestError(MilkrunError):
    """No answer came, after all retries."""

    retryable = True


class ConnectError(RequestError):
    """The engine could not be reached, or the connection broke."""


class RequestTimeout(RequestError):
    """The engine was reached but did not answer in time."""


class ResponseError(MilkrunError):
    """
    The engine refused.

    Args:
        status: the HTTP status.
        code: the engine's stable word for the reason (`milkrun.wire.Problem.code`); mapping goes by it, never by text.
        request_id: find the request in the engine's log with it.
        retry_after: seconds that the engine asked us to wait.
    """

    def __init__(
        self, message: str, *, status: int, code: str, request_id: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class InvalidRequest(ResponseError):
    """400 or 422: the request itself is wrong; the message names the field or column."""


class AuthenticationError(ResponseError):
    """401: no API key, or one that the engine does not know."""


class PermissionDenied(ResponseError):
    """403: the key may not do this."""


class NotFound(ResponseError):
    """404: no such job for this key; it may have been deleted."""


class Conflict(ResponseError):
    """409: the job's state or claim forbids it: `stale_claim`, `inputs_differ`, `not_ended`, `nothing_to_retry`."""


class TooLarge(ResponseError):
    """413: more bytes than the engine takes at once."""


class RateLimited(ResponseError):
    """429: too many requests; wait `retry_after` seconds."""

    retryable = True


class EngineUnavailable(ResponseError):
    """5xx: the engine, or a proxy before it, can't answer just now."""

    retryable = True


class UnexpectedResponse(MilkrunError):
    """An answer that no Milkrun engine gives: a proxy's page, or a wrong URL."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class LocalEngineError(MilkrunError):
    """No engine address is set, and no local engine could be found or started."""


class WaitTimeout(MilkrunError):
    """We stopped waiting; the job goes on. `job` is how it stood last."""

    def __init__(self, message: str, *, job: Job) -> None:
        super().__init__(message)
        self.job = job


class JobError(MilkrunError):
    """The job ended, but not as it should. `job` is how it ended."""

    def __init__(self, message: str, *, job: Job) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobError):
    """No row could run, or the input became unreadable part-way."""


class JobCancelled(JobError):
    """Somebody stopped the job, or another submit replaced it; committed rows stay readable."""


class JobExpired(JobError):
    """The job's completion window closed; committed rows stay readable."""


class TooManyRowsFailed(JobError):
    """The job succeeded, but more rows failed than the caller allows."""
