"""
Small duties that keep the ledger and the blobs in order: rescuer, expirer, progress, sweeper.
"""

import asyncio
import logging
from collections.abc import Callable, Collection

from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch.recorder import Recorder
from milkrun_engine.service.leftovers import delete_unnamed
from milkrun_engine.service.metrics import Metrics
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store

log = logging.getLogger(__name__)
_RESCUE_SECONDS = 2.0
_EXPIRE_SECONDS = 1.0
_EXPIRE_BATCH = 100
_PROGRESS_SECONDS = 1.0
_SWEEP_SECONDS = 3_600.0
_SWEEP_AGE_SECONDS = 86_400.0
_SWEEP_BATCH = 500
_REMEMBERED_SECONDS = 30 * 86_400.0  # a reader of the feed that was away for longer begins anew


class Rescuer:
    """
    Gives back leases that ended without a renewal.

    Args:
        in_hand: the chunks that this process works on. A clock that was set forward ends their leases, too, and
            whoever renews them knows better.
    """

    def __init__(
        self,
        *,
        store: Store,
        threads: Threads,
        signals: Signals,
        metrics: Metrics,
        in_hand: Callable[[], Collection[int]],
    ) -> None:
        self._store = store
        self._threads = threads
        self._signals = signals
        self._metrics = metrics
        self._in_hand = in_hand

    async def run_once(self) -> None:
        """Look once, after a pause."""
        await asyncio.sleep(_RESCUE_SECONDS)
        if await self._threads.read(self._store.chunks.expired, self._in_hand()):
            count = await self._threads.write(self._store.chunks.rescue, self._in_hand())
            log.warning("leases rescued", extra={"action": "leases_rescued", "count": count})
            self._metrics.rescued(count)
            self._signals.to_dispatch.set()


class Expirer:
    """Ends the jobs whose completion window has closed."""

    def __init__(self, *, store: Store, threads: Threads, signals: Signals) -> None:
        self._store = store
        self._threads = threads
        self._signals = signals

    async def run_once(self) -> None:
        """Look once, after a pause."""
        await asyncio.sleep(_EXPIRE_SECONDS)
        if not await self._threads.read(self._store.controls.overdue):
            return
        for job_id, tenant_id in await self._threads.write(self._store.controls.expire, _EXPIRE_BATCH):
            log.info("job ended", extra={"action": "job_ended", "job_id": job_id, "status": "expired"})
            self._signals.changed(tenant_id)
            self._signals.stopped(job_id)


class Progress:
    """Publishes the progress of running jobs, all of them in one transaction a second."""

    def __init__(self, *, store: Store, threads: Threads, signals: Signals, recorder: Recorder) -> None:
        self._store = store
        self._threads = threads
        self._signals = signals
        self._recorder = recorder

    async def run_once(self) -> None:
        """Publish once, after a pause."""
        await asyncio.sleep(_PROGRESS_SECONDS)
        job_ids, self._recorder.changed_jobs = self._recorder.changed_jobs, set()
        if job_ids:
            for tenant_id in await self._threads.write(self._store.feed.publish_progress, sorted(job_ids)):
                self._signals.changed(tenant_id)


class Sweeper:
    """Deletes blobs older than a day that no ledger row names: left-overs of crashes. Forgets deleted jobs."""

    def __init__(self, *, store: Store, blobs: LocalBlobs, threads: Threads) -> None:
        self._store = store
        self._blobs = blobs
        self._threads = threads

    async def run_once(self) -> None:
        """Sweep once, then pause."""
        await self._threads.write(self._store.controls.forget_deleted, _REMEMBERED_SECONDS)
        swept = await self._threads.files(self.sweep)
        if swept:
            log.info("blobs swept", extra={"action": "blobs_swept", "count": swept})
        await asyncio.sleep(_SWEEP_SECONDS)

    def sweep(self) -> int:
        """Delete what is old and unreferenced; returns how many."""
        swept = 0
        batch: list[str] = []
        for name in self._blobs.older_than(_SWEEP_AGE_SECONDS):
            batch.append(name)
            if len(batch) == _SWEEP_BATCH:
                swept += delete_unnamed(self._store, self._blobs, batch)
                batch = []
        return swept + delete_unnamed(self._store, self._blobs, batch)
