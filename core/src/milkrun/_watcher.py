"""
`Watcher`: any number of waits in one process over one connection.

A thread follows the change feed while somebody waits. Another reads jobs by id, in batches:
each once when its wait begins, because it may have ended before, and from time to time those
whose waiter wants to hear of progress; of more than one request can name, only those that run.
Futures carry the answer to threads and event loops.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import ClassVar, Self

from milkrun import _retry, wire
from milkrun._client import Milkrun
from milkrun._operations import PAGE_JOBS, changes, jobs, jobs_by_id
from milkrun._waiting import POLL_SECONDS, Progress, deleted
from milkrun.exceptions import ResponseError
from milkrun.status import FeedEvents, JobStatus

log = logging.getLogger(__name__)
PROGRESS_SECONDS = 30.0
_GATHER_SECONDS = 0.02  # waits that begin together are read together


@dataclass(slots=True)
class _Wait:
    future: Future[wire.Job]
    on_progress: Progress | None
    since: float = field(default_factory=time.monotonic)


class Watcher:
    """
    Waits for any number of jobs of one engine through one connection to its change feed.

    Safe to use from threads and event loops (`asyncio.wrap_future`). Costs nothing while nobody waits. The jobs'
    `row_errors` are empty here; `job(id)` has them. It belongs to one process: a forked child takes `shared()`,
    or makes one of its own.

    Args:
        client: asks the engine; the watcher closes it.
        progress_seconds: how often waiters that asked for progress hear of it.

    Example:
        watcher = Watcher(Milkrun("http://engine:8787", "key"))
        job = watcher.watch(job_id).result(timeout=3600)
    """

    _shared: ClassVar[dict[tuple[int, str | None, str | None], "Watcher"]] = {}
    _sharing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, client: Milkrun, *, progress_seconds: float = PROGRESS_SECONDS) -> None:
        self._client = client
        self._progress_seconds = progress_seconds
        self._lock = threading.Lock()
        self._waits: dict[str, list[_Wait]] = {}
        self._new: SimpleQueue[str] = SimpleQueue()
        self._is_following = False
        self._is_reading = False
        self._closed = False

    @classmethod
    def shared(cls, url: str | None = None, api_key: str | None = None) -> Self:
        """Return this process's one watcher of an engine; it never starts a local one, and stays open."""
        with Watcher._sharing:
            place = (os.getpid(), url, api_key)  # a forked child has none of its parent's threads
            if place not in cls._shared:
                client = Milkrun(url, api_key, local=False)
                client._closed = True  # noqa: SLF001 (it is meant to be left open: nobody can know who waits last)
                cls._shared[place] = cls(client)
            found = cls._shared[place]
            assert isinstance(found, cls)
            return found

    def watch(self, job_id: str, on_progress: Progress | None = None) -> Future[wire.Job]:
        """
        Return at once a future of the job as it will have ended, however it ends.

        Cancelling the future ends the wait, not the job. It raises `NotFound` for a job that is not there
        or was deleted, and what went wrong when the engine stayed away for minutes.

        Args:
            on_progress: called in the watcher's thread with the job, now and then while it runs.

        Raises:
            ValueError: this is no job's id.
        """
        if not re.fullmatch(r"[\w-]{1,200}", job_id, re.ASCII):  # one that can't be sent would end the others' waits
            raise ValueError(f"no job has such an id: {job_id!r:.100}")
        wait = _Wait(Future(), on_progress)
        with self._lock:
            if self._closed:
                raise RuntimeError("the watcher is closed")
            self._waits.setdefault(job_id, []).append(wait)
            self._new.put(job_id)
            if not self._is_following:
                self._is_following = True
                threading.Thread(target=self._follow, name="milkrun feed", daemon=True).start()
            if not self._is_reading:
                self._is_reading = True
                threading.Thread(target=self._read, name="milkrun jobs", daemon=True).start()
        return wait.future

    def close(self) -> None:
        """End all waits (their futures are cancelled); the jobs go on."""
        with self._lock:
            self._closed = True
            waits, self._waits = self._waits, {}
        for some in waits.values():
            for wait in some:
                wait.future.cancel()
        self._client.close()

    def _follow(self) -> None:
        """Hear of ends until nobody waits any more."""
        cursor: str | None = None
        while self._goes_on("_is_following"):
            began = time.monotonic()
            try:
                if cursor is None:
                    cursor = self._ask(None).cursor
                    self._look(self._pending())
                else:
                    news = self._ask(cursor)
                    cursor = news.cursor
                    self._settle(news.jobs)
                    self._fail(news.deleted, deleted)
            except ResponseError as error:
                if error.code != "cursor_lost":
                    self._give_up(error, began)
                cursor = None
            except Exception as error:
                self._give_up(error, began)
                cursor = None

    def _read(self) -> None:
        """Read each new job once, and from time to time those whose progress somebody wants to hear."""
        due = time.monotonic() + self._progress_seconds
        while self._goes_on("_is_reading"):
            ids = self._gather(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            try:
                if ids:
                    self._look(ids)
                if time.monotonic() >= due:  # also while new waits keep coming
                    self._settle(self._moved())
                    due = time.monotonic() + self._progress_seconds
            except Exception as error:
                self._give_up(error, began)
                due = time.monotonic() + self._progress_seconds

    def _gather(self, seconds: float) -> list[str]:
        """Wait for new jobs, so long at most."""
        ids: set[str] = set()
        try:
            ids.add(self._new.get(timeout=seconds))
            while True:
                ids.add(self._new.get(timeout=_GATHER_SECONDS))
        except Empty:
            return sorted(ids.intersection(self._pending()))

    def _moved(self) -> list[wire.Job]:
        """Read those whose progress somebody wants to hear, or of very many those that run: few do at once."""
        with self._lock:
            ids = [job_id for job_id, waits in self._waits.items() if any(wait.on_progress for wait in waits)]
        if len(ids) <= PAGE_JOBS:
            return self._jobs(ids)
        link, driver = self._client._link, self._client._driver  # noqa: SLF001 (the same package)
        running = driver.run(jobs(link, limit=None, statuses=[JobStatus.running], policy=_retry.PATIENT))
        wanted = set(ids)
        return [job for job in running if job.id in wanted]

    def _ask(self, cursor: str | None) -> wire.Changes:
        wait = POLL_SECONDS if cursor else 0.0
        link, driver = self._client._link, self._client._driver  # noqa: SLF001 (the same package)
        return driver.run(changes(link, after=cursor, wait=wait, on=FeedEvents.end, policy=_retry.PATIENT))

    def _jobs(self, ids: list[str]) -> list[wire.Job]:
        link, driver = self._client._link, self._client._driver  # noqa: SLF001 (the same package)
        return driver.run(jobs_by_id(link, ids, policy=_retry.PATIENT))

    def _look(self, ids: list[str]) -> None:
        """Read jobs by id: they have ended, go on, or are gone."""
        found = self._jobs(ids)
        self._fail(sorted(set(ids) - {job.id for job in found}), deleted)
        self._settle(found)

    def _pending(self) -> list[str]:
        with self._lock:
            return list(self._waits)

    def _goes_on(self, role: str) -> bool:
        """Whether somebody waits still; if not, the thread ends, and the next wait starts a new one."""
        with self._lock:
            self._waits = {
                job_id: left
                for job_id, waits in self._waits.items()
                if (left := [wait for wait in waits if not wait.future.cancelled()])
            }
            if not self._waits:
                setattr(self, role, False)
            return bool(self._waits)

    def _settle(self, jobs: list[wire.Job]) -> None:
        for job in jobs:
            with self._lock:
                waits = self._waits.pop(job.id, []) if job.is_terminal else list(self._waits.get(job.id, ()))
            for wait in waits:
                if not job.is_terminal:
                    _tell(wait, job)
                elif wait.future.set_running_or_notify_cancel():
                    wait.future.set_result(job)

    def _fail(self, job_ids: list[str], make: Callable[[list[str]], Exception]) -> None:
        for job_id in job_ids:
            with self._lock:
                waits = self._waits.pop(job_id, [])
            for wait in waits:
                if wait.future.set_running_or_notify_cancel():
                    wait.future.set_exception(make([job_id]))

    def _give_up(self, error: Exception, began: float) -> None:
        """End the waits that were there when what failed began; a later one has its own patience."""
        with self._lock:
            given_up = [wait for waits in self._waits.values() for wait in waits if wait.since <= began]
            gone = set(map(id, given_up))
            self._waits = {
                job_id: left
                for job_id, waits in self._waits.items()
                if (left := [wait for wait in waits if id(wait) not in gone])
            }
        for wait in given_up:
            if wait.future.set_running_or_notify_cancel():
                wait.future.set_exception(error)


def _tell(wait: _Wait, job: wire.Job) -> None:
    if wait.on_progress is None or wait.future.cancelled():
        return
    try:
        wait.on_progress(job)
    except Exception:
        # Its own waiter must not end the others' waits.
        log.exception("on_progress failed", extra={"action": "on_progress_failed", "job_id": job.id})
        wait.on_progress = None


def _after_fork() -> None:
    Watcher._sharing = threading.Lock()  # noqa: SLF001 (another thread of the parent may have held it)


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)
