"""
Holding jobs back, letting them go on, and deleting them.
"""

import logging
from collections.abc import Callable

from milkrun.wire import Job
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.domain.jobs import JobRecord
from milkrun_engine.service.leftovers import delete_unnamed
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store

log = logging.getLogger(__name__)


class JobControls:
    """
    What a tenant does to its jobs beside submitting, reading and cancelling them.

    Args:
        view: shows a job as callers see it.
    """

    def __init__(
        self,
        *,
        store: Store,
        blobs: LocalBlobs,
        threads: Threads,
        signals: Signals,
        view: Callable[[JobRecord], Job],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._threads = threads
        self._signals = signals
        self._view = view

    async def pause(self, tenant_id: str, job_id: str) -> Job:
        """
        Start no more rows of a job; those that replicas have already are finished.

        Raises:
            NotFound: this tenant has no such job.
            AlreadyEnded: the job is over.
        """
        record = await self._threads.write(self._store.controls.pause, tenant_id, job_id, paused=True)
        self._signals.changed(tenant_id)
        return self._view(record)

    async def resume(self, tenant_id: str, job_id: str) -> Job:
        """
        Let a paused job go on, at the place in the queue that it had.

        Raises:
            NotFound: this tenant has no such job.
            AlreadyEnded: the job is over.
        """
        record = await self._threads.write(self._store.controls.pause, tenant_id, job_id, paused=False)
        self._signals.changed(tenant_id)
        self._signals.submitted(record.model)
        return self._view(record)

    async def delete(self, tenant_id: str, job_id: str) -> None:
        """
        Delete an ended job with its results and its input.

        Raises:
            NotFound: this tenant has no such job.
            NotEnded: it is alive.
        """
        names = await self._threads.write(self._store.controls.delete, tenant_id, job_id)
        self._signals.changed(tenant_id)
        try:
            await self._threads.files(delete_unnamed, self._store, self._blobs, names)
        except Exception:  # the ledger has forgotten them: the sweeper finds what stays
            log.exception("files of a deleted job stay for now", extra={"action": "files_left", "job_id": job_id})
