"""
Waiting for jobs through the change feed, as generators of effects like all operations.

A waiter subscribes first (takes a cursor) and reads its jobs then, so an end between the two
is never missed; when the feed has lost the cursor it does both again.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from milkrun import _requests, _retry, outcome, wire
from milkrun._drivers import Emit, Operation, Stream
from milkrun._operations import Link, changes, exchange, job
from milkrun.exceptions import NotFound, RequestError, ResponseError, WaitTimeout
from milkrun.status import FeedEvents

POLL_SECONDS = 25.0  # how long one request to the change feed may stay open
IDS_A_REQUEST = 100
Progress = Callable[[wire.Job], object]


def wait(link: Link, job_id: str, *, timeout: float | None, on_progress: Progress | None) -> Operation[wire.Job]:
    """Follow one job to its end."""
    on = FeedEvents.end if on_progress is None else FeedEvents.progress
    deadline = None if timeout is None else link.clock() + timeout
    policy = _retry.QUICK  # a wrong address fails soon; an engine that was there once is worth patience
    cursor: str | None = None
    told: wire.Job | None = None
    while True:
        if cursor is None:
            cursor = (yield from changes(link, on=on, policy=policy)).cursor
            seen = yield from job(link, job_id, policy=policy)
            policy = _retry.PATIENT
        else:
            news = yield from _poll(link, cursor, on, deadline, partial(_gave_up, seen))
            cursor = news.cursor if news else None
            if news and job_id in news.deleted:
                raise _deleted([job_id])
            seen = next((changed for changed in news.jobs if changed.id == job_id), seen) if news else seen
        if on_progress is not None and seen != told:
            on_progress(seen)
        told = seen
        if seen.is_terminal:
            # The feed's jobs are brief; the job itself also counts its failed rows by error code.
            return (yield from job(link, job_id, policy=policy))


def as_ended(link: Link, job_ids: Iterable[str], *, timeout: float | None) -> Stream[wire.Job]:
    """Follow any number of jobs through one connection; emit each as it ends."""
    deadline = None if timeout is None else link.clock() + timeout
    pending: dict[str, wire.Job | None] = dict.fromkeys(job_ids)
    policy = _retry.QUICK
    cursor: str | None = None
    while pending:
        if cursor is None:
            cursor = (yield from changes(link, policy=policy)).cursor
            found = yield from _jobs_by_id(link, list(pending), policy)
            policy = _retry.PATIENT
        else:
            news = yield from _poll(link, cursor, FeedEvents.end, deadline, partial(_gave_up_on, pending))
            cursor = news.cursor if news else None
            found = news.jobs if news else []
            if news and (gone := pending.keys() & set(news.deleted)):
                raise _deleted(sorted(gone))
        for seen in found:
            if seen.id not in pending:
                continue
            pending[seen.id] = seen
            if seen.is_terminal:
                del pending[seen.id]
                yield Emit(seen)


def _poll(
    link: Link, cursor: str, on: FeedEvents, deadline: float | None, give_up: Callable[[], WaitTimeout]
) -> Operation[wire.Changes | None]:
    """Wait for news behind a cursor; None when the feed no longer knows it."""
    patience = _retry.PATIENT.seconds
    left = patience if deadline is None else deadline - link.clock()
    if left <= 0:
        raise give_up()
    policy = replace(_retry.PATIENT, seconds=min(left, patience))
    try:
        return (yield from changes(link, after=cursor, wait=min(left, POLL_SECONDS), on=on, policy=policy))
    except (RequestError, ResponseError) as error:
        if isinstance(error, ResponseError) and error.code == "cursor_lost":
            return None
        if error.retryable and left < patience:
            raise give_up() from error
        raise


def _jobs_by_id(link: Link, ids: list[str], policy: _retry.Policy) -> Operation[list[wire.Job]]:
    found: list[wire.Job] = []
    for start in range(0, len(ids), IDS_A_REQUEST):
        some = ids[start : start + IDS_A_REQUEST]
        call = _requests.get_jobs(limit=IDS_A_REQUEST, ids=some)
        found += _requests.read(wire.JobList, (yield from exchange(link, call, policy=policy))).jobs
    if missing := set(ids) - {each.id for each in found}:
        raise _deleted(sorted(missing))
    return found


def _deleted(ids: list[str]) -> NotFound:
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
