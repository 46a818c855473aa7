"""
One pool's runner: claims chunks for its model, keeps its replicas, commits whole chunks.
"""

import asyncio
import logging
import math
import time
from collections.abc import Coroutine
from typing import Any

from milkrun_engine.blobs import chunk_files
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch.breaker import Breaker
from milkrun_engine.dispatch.patience import Patience
from milkrun_engine.dispatch.quarantine import Quarantine
from milkrun_engine.dispatch.rate import Rate
from milkrun_engine.dispatch.recorder import Recorder
from milkrun_engine.dispatch.runner import ReplicaRunner
from milkrun_engine.dispatch.work import MOST_BYTES, ChunkWork, Feed
from milkrun_engine.domain.errors import BlobCorrupt
from milkrun_engine.domain.leases import Lease, Suspicion
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.domain.planning import CHUNK_ROWS_MAX, WINDOW_BYTES
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.replicas.base import Pool
from milkrun_engine.service.metrics import Metrics
from milkrun_engine.service.signals import Signals, wait_event
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store

log = logging.getLogger(__name__)
_ROUND_SECONDS = 1.0
_MOST_CLAIMS = 16
_GIVE_UP_CLAIMS = 64
_MOST_READS = 5  # claims of a chunk whose rows the disk does not give
_MOST_UNRECORDED_ROWS = 16 * CHUNK_ROWS_MAX  # a second's work of echo; commits take milliseconds


class PoolRunner:
    """
    Runs the chunks of one model.

    Args:
        owner: who holds the leases: this dispatcher.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        pool: Pool,
        owner: str,
        store: Store,
        blobs: LocalBlobs,
        threads: Threads,
        signals: Signals,
        recorder: Recorder,
        metrics: Metrics,
        patience: Patience,
    ) -> None:
        self.spec = spec
        self._pool = pool
        self._owner = owner
        self._store = store
        self._blobs = blobs
        self._threads = threads
        self._signals = signals
        self._recorder = recorder
        self._metrics = metrics
        self._breaker = Breaker(patience.give_up)
        self._rate = Rate()
        self._patience = patience
        self._feed = Feed()
        self._quarantine = Quarantine(self._suspect, self.settled)
        self.works: dict[int, ChunkWork] = {}  #: claimed chunks by id, until they are committed or dropped
        self._committing: set[ChunkWork] = set()  # whole, and not yet recorded
        self._runners: dict[ReplicaRunner, asyncio.Task[None]] = {}
        self._recording: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._has_work = False
        self._news = 0  # how often there may have been something new to claim
        # Of the last claim that found too few: the news then, and the rank that it was to be sooner than.
        self._exhausted: tuple[int, float | None] = (-1, None)
        self._worked_at = time.monotonic()
        # Of the last claim, to know how many chunks fill a window. The most at first: an engine that
        # comes back to a large job must not lease sixteen chunks where one is enough.
        self._chunk_rows = CHUNK_ROWS_MAX
        self._chunk_bytes = WINDOW_BYTES

    @property
    def state(self) -> str:
        """stopped, loading, ready or failing."""
        if any(runner.info for runner in self._runners):
            return "ready"
        if self._breaker.failures:
            return "failing"
        return "loading" if self._runners else "stopped"

    @property
    def failure(self) -> str | None:
        """Why the model does not load."""
        return self._breaker.reason or None

    @property
    def context_tokens(self) -> int | None:
        """The model's context, once it has been loaded."""
        return next((runner.info.context_tokens for runner in self._runners if runner.info), None)

    @property
    def rows_per_second(self) -> float | None:
        """How many rows it has answered a second of late; None when it answers none."""
        return self._rate.rows_per_second

    def wake(self) -> None:
        """Look for work."""
        self._wake.set()

    def expect_work(self) -> None:
        """There are rows for this pool, or there will be in a moment: have its replicas ready."""
        self._has_work = True
        self._news += 1
        self._worked_at = time.monotonic()
        self._wake.set()

    def no_work(self) -> None:
        """The ledger has no row for this pool."""
        self._has_work = False

    async def run_once(self) -> None:
        """One round: replicas as needed, then chunks as there is room."""
        await wait_event(self._wake, _ROUND_SECONDS)
        self._wake.clear()
        if self._has_work or self.works:
            self._worked_at = time.monotonic()
            self._rate.work()
            self._keep_replicas()
        else:
            self._rate.idle()
            if time.monotonic() - self._worked_at >= self.spec.idle_seconds:
                await self._stop_replicas()
        # One that is ready has yet to show what it can, and one that loads has its own patience.
        if self._breaker.gave_up and not any(runner.info or runner.is_loading for runner in self._runners):
            await self._give_up()
        else:
            await self._claim()

    def _keep_replicas(self) -> None:
        for runner, task in list(self._runners.items()):
            if task.done():
                del self._runners[runner]
                error = None if task.cancelled() else task.exception()
                log.error("a replica's runner ended", extra={"action": "runner_ended"}, exc_info=error)
        while len(self._runners) < self.spec.replicas:
            runner = ReplicaRunner(
                spec=self.spec,
                pool=self._pool,
                feed=self._feed,
                quarantine=self._quarantine,
                breaker=self._breaker,
                host=self,
                patience=self._patience,
            )
            self._runners[runner] = asyncio.create_task(runner.run(), name=f"replica of {self.spec.name}")

    async def _stop_replicas(self) -> None:
        runners, self._runners = self._runners, {}
        for task in runners.values():
            task.cancel()
        await asyncio.gather(*runners.values(), return_exceptions=True)
        self._breaker.reset()

    async def _claim(self) -> None:
        window = sum(runner.info.window_rows for runner in self._runners if runner.info)
        if not window:
            return
        # A full window's last row: what is due sooner may still come in, until that fills the window.
        rank = self._feed.rank_at(window)
        looked = self._news, rank  # as of before the claim: what comes in meanwhile is looked at again
        if self._exhausted == looked:
            return
        room = 2 * window - self._feed.waiting_rows
        limit = self._claimable(1 if rank is not None else max(1, min(_MOST_CLAIMS, room // self._chunk_rows)))
        if not limit:
            return
        claim = self._store.chunks.claim
        leases = await self._threads.write(claim, self.spec.name, self._owner, limit, before_rank=rank)
        if len(leases) < limit:
            self._exhausted = looked
        await self._accept(leases)
        if leases:
            self._wake.set()

    def _claimable(self, wanted: int) -> int:
        """How many of the wanted chunks fit into memory, also while the disk takes no results."""
        if sum(len(work.rows) for work in self._committing) >= _MOST_UNRECORDED_ROWS:
            return 0
        held = sum(work.bytes for work in (*self.works.values(), *self._committing))
        free = MOST_BYTES * (1 + len(self._runners)) - held
        return max(0, min(wanted, math.ceil(free / self._chunk_bytes)))

    async def _accept(self, leases: list[Lease]) -> None:
        if not leases:
            return
        reached(Point.chunk_claimed)
        self._chunk_rows = max(1, leases[-1].rows)
        for tenant_id in await self._threads.write(
            self._store.chunks.start_jobs, sorted({lease.job_id for lease in leases})
        ):
            self._signals.changed(tenant_id)
        reached(Point.job_started)
        largest = 1
        for lease in leases:
            try:
                work = await self._load(lease)
            except (OSError, MemoryError):  # its lease ends unused, and it is claimed again; others go on
                extra = {"action": "input_unread", "job_id": lease.job_id, "chunk": lease.number}
                log.exception("a chunk's rows could not be read", extra=extra)
                continue
            if work is None:
                continue
            largest = max(largest, work.bytes)
            if (old := self.works.get(lease.chunk_id)) is not None:
                await self.drop(old)  # its lease ended before a heartbeat could tell
            self.works[lease.chunk_id] = work
            self._quarantine.add(work)
            self._feed.add(work)
            self.settled(work)
        self._chunk_bytes = largest
        self._wake_runners()

    async def _load(self, lease: Lease) -> ChunkWork | None:
        try:
            data = await self._threads.files(self._blobs.read, lease.input_blob, lease.input_sha256)
        except (BlobCorrupt, OSError) as error:
            if isinstance(error, OSError) and lease.attempts < _MOST_READS:  # a disk that comes to itself again
                raise
            extra = {"action": "input_corrupt", "job_id": lease.job_id, "chunk": lease.number}
            log.exception("a chunk's rows are damaged", extra=extra)
            fail = self._store.jobs.fail
            if await self._threads.write(fail, lease.job_id, lease.job_epoch, "input_unreadable", str(error)):
                self._signals.changed(lease.tenant_id)
                self._signals.stopped(lease.job_id)
            return None
        return ChunkWork(lease, chunk_files.read_input(data))

    def settled(self, work: ChunkWork) -> None:
        """Commit a chunk once it is whole; see `RunnerHost`."""
        if work.is_whole and self.works.get(work.lease.chunk_id) is work:
            del self.works[work.lease.chunk_id]
            self._committing.add(work)
            self._spawn(self._commit(work))

    def died(self, suspects: int) -> None:
        """Count a death; see `RunnerHost`."""
        self._metrics.died(self.spec.name, suspects)

    async def _commit(self, work: ChunkWork) -> None:
        try:
            await self._recorder.record(work)
            self._rate.add(len(work.rows))
        finally:
            self._committing.discard(work)
            self._wake.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    async def _suspect(self, work: ChunkWork, suspects: dict[int, Suspicion]) -> bool:
        while not work.is_dropped:
            try:
                return await self._threads.write(self._store.chunks.suspect, work.lease, suspects)
            except Exception:
                extra = {"action": "suspect_failed", "job_id": work.lease.job_id, "chunk": work.lease.number}
                log.exception("suspects could not be written; trying again", extra=extra)
                await asyncio.sleep(_ROUND_SECONDS)
        return False

    async def _give_up(self) -> None:
        """End the undecided chunks of a model that does not load; a job submitted later tries it anew."""
        message = f"the model {self.spec.name} could not be loaded: {self._breaker.reason}"
        leases: list[Lease] = []
        if limit := self._claimable(_GIVE_UP_CLAIMS):
            leases = await self._threads.write(self._store.chunks.claim, self.spec.name, self._owner, limit)
        await self._accept(leases)
        for work in list(self.works.values()):
            self._feed.remove(work)
            self._quarantine.forget(work)
            work.settle_unavailable(message)
            self.settled(work)
        if not leases and not self._has_work:
            await self._stop_replicas()

    def leases_in_hand(self) -> dict[tuple[int, int], int]:
        """For each leased chunk (id, epoch) the rows that are finished."""
        held = [*self.works.values(), *self._committing]
        return {(work.lease.chunk_id, work.lease.epoch): len(work.results) for work in held}

    async def drop(self, work: ChunkWork) -> None:
        """Stop working on a chunk whose lease or job is gone."""
        work.is_dropped = True
        self.works.pop(work.lease.chunk_id, None)
        self._feed.remove(work)
        self._quarantine.forget(work)
        for runner in self._runners:
            await runner.drop(work)
        self._wake.set()

    async def drop_lost(self, asked: set[int], held: set[int]) -> None:
        """Drop the chunks whose lease a heartbeat did not find any more."""
        for whole in self._committing:
            whole.is_dropped |= whole.lease.chunk_id in asked - held
        for chunk_id in asked - held:
            if (work := self.works.get(chunk_id)) is not None:
                await self.drop(work)

    async def drop_job(self, job_id: str) -> None:
        """Drop a stopped job's chunks."""
        for work in list(self.works.values()):
            if work.lease.job_id == job_id:
                await self.drop(work)

    def _wake_runners(self) -> None:
        for runner in self._runners:
            runner.wake()

    async def stop(self) -> None:
        """End the replicas; whole chunks are committed first, the others' leases are for the caller to release."""
        if self._recording:
            await asyncio.wait(self._recording, timeout=_ROUND_SECONDS)
        await self._stop_replicas()
