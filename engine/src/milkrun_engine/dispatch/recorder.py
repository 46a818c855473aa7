"""
The recorder: writes a whole chunk's result file, then asks the ledger to take it.
"""

import asyncio
import logging

from milkrun.status import JobStatus
from milkrun_engine.blobs import chunk_files
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch.disk import Refusals
from milkrun_engine.dispatch.work import ChunkWork
from milkrun_engine.domain.errors import DiskFull, OutcomeUnknown
from milkrun_engine.domain.ids import new_id
from milkrun_engine.domain.jobs import ChunkCounts, chunk_blob
from milkrun_engine.domain.leases import Lease
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.service.leftovers import delete_unnamed
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store

log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0


class Recorder:
    """Commits chunks."""

    def __init__(self, *, store: Store, blobs: LocalBlobs, threads: Threads, signals: Signals) -> None:
        self._store = store
        self._blobs = blobs
        self._threads = threads
        self._signals = signals
        self.disk = Refusals()
        self.changed_jobs: set[str] = set()  #: whose counts changed since progress was last published

    async def record(self, work: ChunkWork) -> None:
        """Commit a whole chunk, or find that its lease is lost; tries on while disk or ledger refuse."""
        lease = work.lease
        rows = list(work.results.values())
        counts = chunk_files.count(rows)
        # The name holds the epoch and is this call's alone: a late writer can't touch a committed file.
        # Its tries share one file, so that a ledger that refuses writes does not fill the disk.
        blob = chunk_blob(lease.job_id, lease.number, f"{lease.epoch}.{new_id('out')}")
        sha256: str | None = None
        may_be_recorded = False
        while not work.is_dropped:
            try:
                # What waits for the ledger longer than a day would be taken for a left-over of a crash.
                if sha256 is None or not await self._threads.files(self._blobs.renew, blob):
                    sha256 = await self._threads.files(lambda: self._blobs.put(blob, chunk_files.write_result(rows)))
                await self._commit(work, blob, sha256, counts)
            except Exception as error:
                may_be_recorded |= isinstance(error, OutcomeUnknown)
                if isinstance(error, DiskFull):
                    self.disk.note()
                extra = {"action": "record_failed", "job_id": lease.job_id, "chunk": lease.number}
                log.exception("a result could not be written; trying again", extra=extra)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return
        if may_be_recorded:  # which is why its lease is gone, perhaps; the sweeper deletes the file if not
            self._announce(lease)
            return
        await self._threads.files(delete_unnamed, self._store, self._blobs, [blob])

    async def _commit(self, work: ChunkWork, blob: str, sha256: str, counts: ChunkCounts) -> None:
        lease = work.lease
        recorded = await self._threads.write(self._store.chunks.record, lease, blob, sha256, counts)
        reached(Point.record_committed)
        if not recorded.accepted and await self._threads.files(delete_unnamed, self._store, self._blobs, [blob]) > 0:
            work.is_dropped = True
            log.info(
                "late result dropped", extra={"action": "late_result", "job_id": lease.job_id, "chunk": lease.number}
            )
            return
        # One that is refused and named was committed by an earlier try, whose answer was an error.
        self.changed_jobs.add(lease.job_id)
        if recorded.ended is not None:
            reached(Point.job_ended)
            if recorded.ended is not JobStatus.succeeded:  # too many rows failed: the others leave the replicas
                self._signals.stopped(lease.job_id)
            log.info("job ended", extra={"action": "job_ended", "job_id": lease.job_id, "status": str(recorded.ended)})
        if recorded.ended is not None or not recorded.accepted:
            self._announce(lease)

    def _announce(self, lease: Lease) -> None:
        self.changed_jobs.add(lease.job_id)
        self._signals.changed(lease.tenant_id)
        self._signals.to_call_back.set()
