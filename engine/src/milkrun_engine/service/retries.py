"""
Running an ended job's failed rows again.
"""

from collections.abc import Collection

from milkrun.wire import RetryRequest, Submitted
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.domain.errors import UnknownModel
from milkrun_engine.domain.jobs import NewRetry
from milkrun_engine.service.jobs import JobService
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store


class JobRetries:
    """Retries on behalf of a tenant; `service` tells and answers as for a submit."""

    def __init__(
        self, *, store: Store, blobs: LocalBlobs, threads: Threads, models: Collection[str], service: JobService
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._threads = threads
        self._models = models
        self._service = service

    async def retry(self, tenant_id: str, job_id: str, request: RetryRequest) -> Submitted:
        """
        Make the job that runs those rows of an ended one that have no result, or find the live one that does.

        Raises:
            NotFound: this tenant has no such job.
            NotEnded, NothingToRetry, InputDeleted: there is nothing to run, or nothing to run it from.
            InvalidRequest: the callback can't be used (also UnknownModel: its model is not declared any more).
            ShuttingDown: the engine is stopping.
        """
        self._service.check_open()
        await self._service.check_callback(request.callback)
        parent = await self._threads.read(self._store.jobs.get, tenant_id, job_id)
        if parent.model not in self._models:
            raise UnknownModel(f"this engine has no model {parent.model!r} any more; submit the rows for another one")
        new = NewRetry(
            tenant_id=tenant_id,
            parent=job_id,
            submission_id=request.submission_id,
            priority=request.priority,
            name=request.name,
            labels=request.labels,
            external_url=request.external_url,
            callback=request.callback.model_dump(mode="json") if request.callback else None,
        )
        result = await self._threads.write(self._store.retries.retry, new, self._has_input)
        return self._service.accepted(result)

    def _has_input(self, blob: str) -> bool:
        return self._blobs.path(blob).is_file()
