"""
The crew: everything that only the elected process does, built anew for each term.
"""

import asyncio
import logging
from collections.abc import Mapping

from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch.agreement import DECLARED
from milkrun_engine.dispatch.callbacks import Callbacks
from milkrun_engine.dispatch.delivery import Sender
from milkrun_engine.dispatch.dispatcher import Dispatcher
from milkrun_engine.dispatch.duty import repeat
from milkrun_engine.dispatch.housekeeping import Expirer, Progress, Rescuer, Sweeper
from milkrun_engine.dispatch.patience import Patience
from milkrun_engine.dispatch.preparer import Preparer
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.replicas.base import Pool
from milkrun_engine.service.egress import Egress
from milkrun_engine.service.metrics import Metrics
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store

log = logging.getLogger(__name__)


class PostLost(Exception):
    """The dispatcher's post is another's by now."""


class Crew:
    """
    Prepares, dispatches, records, rescues, sweeps and calls back.

    Args:
        owner: names this process on its leases.
        term: of its post.
    """

    def __init__(
        self,
        *,
        owner: str,
        term: int,
        store: Store,
        blobs: LocalBlobs,
        threads: Threads,
        signals: Signals,
        models: dict[str, ModelSpec],
        pool: Pool,
        egress: Egress,
        metrics: Metrics,
        patience: Patience,
    ) -> None:
        self._owner = owner
        self._term = term
        self._store = store
        self._threads = threads
        self._models = models
        self.dispatcher = Dispatcher(
            owner=owner,
            store=store,
            blobs=blobs,
            threads=threads,
            signals=signals,
            models=models,
            pool=pool,
            metrics=metrics,
            patience=patience,
        )
        self.callbacks = Callbacks(store=store, threads=threads, signals=signals, sender=Sender(egress))
        self._preparer = Preparer(store=store, blobs=blobs, threads=threads, signals=signals, models=models)
        self._progress = Progress(store=store, threads=threads, signals=signals, recorder=self.dispatcher.recorder)
        self._rescuer = Rescuer(
            store=store, threads=threads, signals=signals, metrics=metrics, in_hand=self.dispatcher.chunks_in_hand
        )
        self._expirer = Expirer(store=store, threads=threads, signals=signals)
        self._sweeper = Sweeper(store=store, blobs=blobs, threads=threads)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """
        Take over: whoever held leases before does so no more.

        Raises:
            PostLost: another was elected while this one started.
        """
        if not await self._threads.write(self._store.chunks.take_over, self._owner, self._term):
            raise PostLost(f"term {self._term} is over")
        for job in await self._threads.read(self._store.jobs.of_unknown_models, list(self._models)):
            if self._store.database.is_shared:  # another engine may declare it, and this one's file be older
                extra = {"action": "model_undeclared", "job_id": job.id}
                log.warning("a job waits for an engine that declares its model", extra=extra)
                continue
            message = "a model that the job needs is not declared any more; declare it and submit again"
            await self._threads.write(self._store.jobs.fail, job.id, job.epoch, "model_unavailable", message)
        await self.dispatcher.start()
        duties = [
            repeat("preparer", self._preparer.run_once),
            repeat("progress", self._progress.run_once),
            repeat("rescuer", self._rescuer.run_once),
            repeat("expirer", self._expirer.run_once),
            repeat("sweeper", self._sweeper.run_once),
            repeat("callbacks", self.callbacks.run_once),
            *self.dispatcher.duties(),
        ]
        self._tasks = [asyncio.create_task(duty) for duty in duties]
        reached(Point.crew_started)

    async def stop(self) -> None:
        """End the duties, hand the leases back and stop the replicas."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self.callbacks.stop()
        finally:
            await self.dispatcher.stop()

    def facts(self) -> Mapping[str, Mapping[str, object]]:
        """How each pool stands, for the processes beside this one."""
        disk_full = self._preparer.disk.are_recent or self.dispatcher.recorder.disk.are_recent
        return {
            name: {
                "state": pool.state,
                "detail": pool.failure,
                "context_tokens": pool.context_tokens,
                "rows_per_second": pool.rows_per_second,
                "disk_full": disk_full,
                DECLARED: pool.spec.fingerprint,
            }
            for name, pool in self.dispatcher.pools.items()
        }
