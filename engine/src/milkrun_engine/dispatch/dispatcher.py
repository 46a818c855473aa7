"""
The dispatcher: one runner a pool, and the heartbeat of all leases.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch.duty import repeat
from milkrun_engine.dispatch.patience import Patience
from milkrun_engine.dispatch.pool_runner import PoolRunner
from milkrun_engine.dispatch.recorder import Recorder
from milkrun_engine.domain.leases import HEARTBEAT_SECONDS
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.replicas.base import Pool
from milkrun_engine.service.metrics import Metrics
from milkrun_engine.service.signals import Signals, wait_event
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store

log = logging.getLogger(__name__)
_ROUND_SECONDS = 1.0
_GOODBYE_SECONDS = 5.0  # for the ledger at a stop; leases that it was not told of end by themselves


class Dispatcher:
    """
    Holds the leases of this engine and works on them.

    Args:
        owner: names this process on its leases.
    """

    def __init__(
        self,
        *,
        owner: str,
        store: Store,
        blobs: LocalBlobs,
        threads: Threads,
        signals: Signals,
        models: dict[str, ModelSpec],
        pool: Pool,
        metrics: Metrics,
        patience: Patience,
    ) -> None:
        self._owner = owner
        self._store = store
        self._threads = threads
        self._signals = signals
        self._pool = pool
        self.recorder = Recorder(store=store, blobs=blobs, threads=threads, signals=signals)
        self.pools = {
            spec.name: PoolRunner(
                spec=spec,
                pool=pool,
                owner=owner,
                store=store,
                blobs=blobs,
                threads=threads,
                signals=signals,
                recorder=self.recorder,
                metrics=metrics,
                patience=patience,
            )
            for spec in models.values()
        }
        self._dropping: set[asyncio.Task[None]] = set()
        self._deaf = signals.on_stopped(self._job_stopped)

    async def start(self) -> None:
        """Make the place of the replicas ready; none is started before there is work."""
        await self._pool.start()

    def duties(self) -> list[Coroutine[Any, Any, None]]:
        """The loops to run, until cancelled."""
        pools = [repeat(f"pool {name}", pool.run_once) for name, pool in self.pools.items()]
        return [repeat("look for work", self._look), repeat("heartbeat", self._heartbeat), *pools]

    async def _look(self) -> None:
        """Tell each pool whether the ledger has rows for it."""
        await wait_event(self._signals.to_dispatch, _ROUND_SECONDS)
        self._signals.to_dispatch.clear()
        wanted = set(self._signals.wanted_pools)
        self._signals.wanted_pools.clear()
        wanted |= await self._threads.read(self._store.chunks.busy_pools)
        for name, pool in self.pools.items():
            if name in wanted:
                pool.expect_work()
            else:
                pool.no_work()

    async def _heartbeat(self) -> None:
        """Renew the leases, with how far each chunk is."""
        await asyncio.sleep(HEARTBEAT_SECONDS)
        in_hand = self._leases_in_hand()
        if not in_hand:
            return
        held = await self._threads.write(self._store.chunks.renew, self._owner, in_hand)
        reached(Point.leases_renewed)
        asked = {chunk_id for chunk_id, _ in in_hand}
        for pool in self.pools.values():
            self.recorder.changed_jobs.update(work.lease.job_id for work in pool.works.values())
            await pool.drop_lost(asked, held)

    def _leases_in_hand(self) -> dict[tuple[int, int], int]:
        in_hand: dict[tuple[int, int], int] = {}
        for pool in self.pools.values():
            in_hand |= pool.leases_in_hand()
        return in_hand

    def chunks_in_hand(self) -> set[int]:
        """The chunks that are worked on."""
        return {chunk_id for chunk_id, _ in self._leases_in_hand()}

    def _job_stopped(self, job_id: str) -> None:
        for pool in self.pools.values():
            task = asyncio.create_task(pool.drop_job(job_id))
            self._dropping.add(task)
            task.add_done_callback(self._dropping.discard)

    async def stop(self) -> None:
        """Hand everything back: whole chunks are committed, leases released, replicas ended."""
        self._deaf()
        try:
            await asyncio.gather(*(pool.stop() for pool in self.pools.values()))
            try:
                async with asyncio.timeout(_GOODBYE_SECONDS):
                    await self._threads.write(self._store.chunks.release, self._owner)
            except Exception:  # with a ledger that is away they end by themselves
                log.warning("leases were not given back", exc_info=True, extra={"action": "goodbye_failed"})
        finally:  # also with a ledger that is away, which may be why
            await self._pool.stop()
