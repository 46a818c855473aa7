"""
Waiting for jobs through the change feed, as generators of effects like all operations.

A waiter subscribes first (takes a cursor) and reads its jobs then, so an end between the two
is never missed; when the feed has lost the cursor it does both again.
"""

from collections.abc import Callable, Iterable, Mapping

from milkrun import _retry, outcome, wire
from milkrun._drivers import Emit, Operation, Stream, Tell
from milkrun._operations import Link, changes, job, jobs_by_id
from milkrun.exceptions import NotFound, RequestError, ResponseError, WaitTimeout
from milkrun.status import FeedEvents

POLL_SECONDS = 25.0  # how long one request to the change feed may stay open
Progress = Callable[[wire.Job], object]  #: called with the job; the awaiting client also takes a coroutine function


def wait(link: Link, job_id: str, *, timeout: float | None, on_progress: Progress | None) -> Operation[wire.Job]:
    """Follow one job to its end."""
    on = FeedEvents.end if on_progress is None else FeedEvents.progress
    deadline = None if timeout is None else link.clock() + timeout
    policy = _retry.QUICK  # a wrong address fails soon; an engine that was there once is worth patience
    cursor: str | None = None
    seen: wire.Job | None = None
    told: wire.Job | None = None
    try:
        while True:
            if cursor is None:
                cursor = (yield from changes(link, on=on, policy=policy, deadline=deadline)).cursor
                seen = yield from job(link, job_id, policy=policy, deadline=deadline)
                policy = _retry.PATIENT
            else:
                news = yield from _poll(link, cursor, on, deadline)
                cursor = news.cursor if news else None
                if news and job_id in news.deleted:
                    raise deleted([job_id])
                seen = next((changed for changed in news.jobs if changed.id == job_id), seen) if news else seen
            if on_progress is not None and seen != told:
                yield Tell(on_progress, seen)
            told = seen
            if seen is not None and seen.is_terminal:
                # The feed's jobs are brief; the job itself also counts its failed rows by error code.
                return (yield from job(link, job_id, policy=policy, deadline=deadline))
            if seen is not None and _is_over(link, deadline):
                raise _gave_up(seen)
    except (RequestError, ResponseError) as error:
        if seen is None or not error.retryable or not _is_over(link, deadline):
            raise
        if seen.is_terminal:
            return seen
        raise _gave_up(seen) from error


def as_ended(link: Link, job_ids: Iterable[str], *, timeout: float | None) -> Stream[wire.Job]:
    """Follow any number of jobs through one connection; emit each as it ends."""
    deadline = None if timeout is None else link.clock() + timeout
    pending: dict[str, wire.Job | None] = dict.fromkeys(_several(job_ids))
    policy = _retry.QUICK
    cursor: str | None = None
    while pending:
        try:
            if cursor is None:
                cursor = (yield from changes(link, policy=policy, deadline=deadline)).cursor
                found = yield from _jobs_by_id(link, list(pending), policy, deadline)
                policy = _retry.PATIENT
            else:
                news = yield from _poll(link, cursor, FeedEvents.end, deadline)
                cursor = news.cursor if news else None
                found = news.jobs if news else []
                if news and (gone := pending.keys() & set(news.deleted)):
                    raise deleted(sorted(gone))
        except (RequestError, ResponseError) as error:
            if not error.retryable or not _is_over(link, deadline) or None in pending.values():
                raise
            raise _gave_up_on(pending) from error
        for seen in found:
            if seen.id not in pending:
                continue
            pending[seen.id] = seen
            if seen.is_terminal:
                del pending[seen.id]
                yield Emit(seen)
        if pending and _is_over(link, deadline):
            raise _gave_up_on(pending)


def _several(job_ids: Iterable[str]) -> Iterable[str]:
    if isinstance(job_ids, str):
        raise TypeError(f"as_ended takes a list of job ids, not the one text {job_ids!r}")
    return job_ids


def _is_over(link: Link, deadline: float | None) -> bool:
    return deadline is not None and link.clock() >= deadline


def _poll(link: Link, cursor: str, on: FeedEvents, deadline: float | None) -> Operation[wire.Changes | None]:
    """Wait for news behind a cursor; None when the feed no longer knows it."""
    seconds = POLL_SECONDS if deadline is None else max(0.0, min(POLL_SECONDS, deadline - link.clock()))
    try:
        return (yield from changes(link, after=cursor, wait=seconds, on=on, policy=_retry.PATIENT, deadline=deadline))
    except ResponseError as error:
        if error.code == "cursor_lost":
            return None
        raise


def _jobs_by_id(link: Link, ids: list[str], policy: _retry.Policy, deadline: float | None) -> Operation[list[wire.Job]]:
    found = yield from jobs_by_id(link, ids, policy=policy, deadline=deadline)
    if missing := set(ids) - {each.id for each in found}:
        raise deleted(sorted(missing))
    return found


def deleted(ids: list[str]) -> NotFound:
    """Make the error of jobs that are not there (any more)."""
    return NotFound(
        f"No such job, or it was deleted: {', '.join(ids[:5])}{' …' if len(ids) > 5 else ''}. "
        "Check the id; a deleted job's results are gone, so submit it again.",
        status=404,
        code="not_found",
    )


def _gave_up(seen: wire.Job) -> WaitTimeout:
    return WaitTimeout(
        f"Stopped waiting for job {seen.id}, still {seen.status} ({outcome.progress(seen)}). "
        "It goes on: wait again, or cancel it.",
        job=seen,
    )


def _gave_up_on(pending: Mapping[str, wire.Job | None]) -> WaitTimeout:
    seen = next(each for each in pending.values() if each is not None)
    return WaitTimeout(
        f"Stopped waiting for {len(pending)} jobs, {seen.id} among them. They go on: wait again, or cancel them.",
        job=seen,
    )
