"""
One replica's runner: keeps its window of rows full, and deals with its death.

Rows of several chunks and jobs are in flight together, refilled as rows finish, so the engine
never drains between chunks. Suspects run alone: the runner lets its window drain first.
"""

import asyncio
import itertools
import logging
import time
from dataclasses import dataclass
from typing import Protocol

from milkrun_engine.dispatch.breaker import Breaker
from milkrun_engine.dispatch.contract import breach
from milkrun_engine.dispatch.patience import Patience
from milkrun_engine.dispatch.quarantine import Quarantine
from milkrun_engine.dispatch.watchdog import Watchdog
from milkrun_engine.dispatch.work import MOST_BYTES, ChunkWork, Feed
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.failpoints import Point, reached
from milkrun_engine.replicas.base import (
    HandOut,
    Pool,
    ReplicaDied,
    ReplicaHandle,
    ReplicaInfo,
    ReplicaLoadError,
)
from milkrun_engine.service.signals import wait_event

log = logging.getLogger(__name__)
_SMALLEST_HAND_OUT = 8
_LAST_WORDS_SECONDS = 2.0
_LOOK_SECONDS = 1.0  # rows and suspects may have come in by another runner
_A_WHILE_SECONDS = 60.0  # of a replica that ran for so long, the load was no failure
_LOOKS_A_SILENCE = 4  # so soon a watchdog sees it
_hand_out_ids = itertools.count(1)


class RunnerHost(Protocol):
    """What a runner tells its pool."""

    def wake(self) -> None:
        """Something changed: look for chunks to claim."""
        ...

    def settled(self, work: ChunkWork) -> None:
        """Rows of a chunk have got their outcomes."""
        ...

    def died(self, suspects: int) -> None:
        """A replica died with so many rows in flight."""
        ...


@dataclass(eq=False, slots=True)
class _InFlight:
    """A hand-out that its replica has, and the slots that have no outcome yet."""

    id: int
    work: ChunkWork
    open: set[int]
    bytes: int  #: of its rows, until all have ended: it is held as a whole
    task: "asyncio.Task[None] | None" = None


class ReplicaRunner:
    """
    Starts a replica, feeds it, and starts it again when it dies.

    Args:
        feed: where rows wait.
        quarantine: where suspects wait.
        host: the pool, told when there is room for more chunks and when rows have ended.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        pool: Pool,
        feed: Feed,
        quarantine: Quarantine,
        breaker: Breaker,
        host: RunnerHost,
        patience: Patience,
    ) -> None:
        self._spec = spec
        self._pool = pool
        self._feed = feed
        self._quarantine = quarantine
        self._breaker = breaker
        self._host = host
        self._patience = patience
        self._watchdog = Watchdog(patience.silence)
        self._ready_at = 0.0
        self._in_flight: dict[int, _InFlight] = {}
        self._handle: ReplicaHandle | None = None
        self._wake = asyncio.Event()
        self._is_alone = False
        self._died: str | None = None
        self.info: ReplicaInfo | None = None
        self.is_loading = False  #: or waits for its place

    def wake(self) -> None:
        """Look at the feed again."""
        self._wake.set()

    @property
    def rows_in_flight(self) -> int:
        """Rows that the replica has."""
        return sum(len(flight.open) for flight in self._in_flight.values())

    async def run(self) -> None:
        """Serve until cancelled; stops the replica then."""
        try:
            while True:
                await asyncio.sleep(self._breaker.pause_seconds)
                try:
                    await self._load_and_serve()
                except ReplicaLoadError as error:
                    self._breaker.failed(str(error))
                    log.warning("model did not load", extra={"action": "load_failed", "pool": self._spec.name})
                except ReplicaDied as error:
                    await self._bury(str(error))
                finally:
                    await self._stop_replica()
                self._host.wake()
        finally:
            await self._end_receivers(0)
            self._give_back()
            await self._stop_replica()

    async def _load_and_serve(self) -> None:
        self.is_loading = True
        try:
            self._handle = await self._pool.start_replica(self._spec)
            await self._handle.placed()
            async with asyncio.timeout(self._patience.load):
                self.info = await self._handle.ready()
        except ReplicaLoadError:
            raise
        except TimeoutError as error:
            raise ReplicaLoadError(f"it had not loaded after {self._patience.load:.0f} s") from error
        except Exception as error:  # no process, no Ray: it counts like a model that does not load
            log.exception("no replica", extra={"action": "start_failed", "pool": self._spec.name})
            raise ReplicaLoadError(f"a replica could not be started: {error!r}") from error
        finally:
            self.is_loading = False
        log.info("replica ready", extra={"action": "replica_ready", "pool": self._spec.name})
        self._ready_at = time.monotonic()
        self._host.wake()
        watching = asyncio.create_task(self._watch(self._handle))
        try:
            while self._died is None:
                self._wake.clear()
                self._refill(self._handle, self.info)
                await wait_event(self._wake, _LOOK_SECONDS)
                if watching.done() and self._died is None:  # an error of this process's own: it watches on
                    extra = {"action": "watchdog_failed", "pool": self._spec.name}
                    log.error("the watchdog failed", extra=extra, exc_info=watching.exception())
                    watching = asyncio.create_task(self._watch(self._handle))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        raise ReplicaDied(self._died)

    async def _watch(self, handle: ReplicaHandle) -> None:
        """Kill a replica that still runs and is as good as dead."""
        self._watchdog = Watchdog(self._patience.silence)
        look_seconds = self._patience.silence / _LOOKS_A_SILENCE
        beat = asyncio.create_task(handle.beat())
        try:
            while True:
                await asyncio.sleep(look_seconds)  # the time asked for counts, not what passed while this process slept
                if beat.done():
                    if (error := beat.exception()) is not None:
                        if not isinstance(error, ReplicaDied):  # else whoever runs rows on it hears by itself, too
                            log.error("no beat", extra={"action": "beat_failed"}, exc_info=error)
                            await handle.kill()
                        self._lost(str(error) or type(error).__name__)
                        return
                    self._watchdog.heard()
                    beat = asyncio.create_task(handle.beat())
                if reason := self._watchdog.passed(look_seconds, rows_in_flight=self.rows_in_flight):
                    await handle.kill()
                    self._lost(reason)
                    return
        finally:
            beat.cancel()

    def _lost(self, reason: str) -> None:
        """Take the replica for dead; its rows stay in flight: they are the suspects."""
        self._died = self._died or reason
        self._wake.set()

    def _refill(self, handle: ReplicaHandle, info: ReplicaInfo) -> None:
        if self._is_alone:
            return
        if self._quarantine.wants(self):
            if self._in_flight:
                return
            if (group := self._quarantine.take(self)) is not None:
                self._is_alone = True
                self._send(handle, *group)
                return
        free = info.window_rows - self.rows_in_flight
        smallest = min(_SMALLEST_HAND_OUT, info.handout_rows, info.window_rows)
        free_bytes = MOST_BYTES - sum(flight.bytes for flight in self._in_flight.values())
        while (free >= smallest and free_bytes > 0) or (free and not self._in_flight):
            taken = self._feed.take(min(free, info.handout_rows), free_bytes)
            if taken is None:
                break
            free -= len(taken[1])
            free_bytes -= self._send(handle, *taken).bytes
        if self._feed.waiting_rows < info.window_rows:
            self._host.wake()

    def _send(self, handle: ReplicaHandle, work: ChunkWork, slots: list[int]) -> _InFlight:
        lease = work.lease
        handout = HandOut(
            id=next(_hand_out_ids),
            job_id=lease.job_id,
            chunk=lease.number,
            epoch=lease.epoch,
            priority=lease.priority,
            defaults=lease.defaults,
            rows=work.hand_out_rows(slots),
        )
        flight = _InFlight(handout.id, work, set(slots), sum(len(row.body) for row in handout.rows))
        self._in_flight[handout.id] = flight
        flight.task = asyncio.create_task(self._receive(handle, handout, flight))
        reached(Point.rows_handed_out)
        return flight

    async def _receive(self, handle: ReplicaHandle, handout: HandOut, flight: _InFlight) -> None:
        sent = time.monotonic()
        try:
            async for outcomes in handle.run(handout):
                reached(Point.rows_finished)
                for outcome in outcomes:
                    if (wrong := breach(outcome)) or not flight.work.settle(outcome, flight.open):
                        await handle.kill()
                        self._lost(f"it lied: {wrong or 'a row that it was not given, or gave already'}")
                        self._host.settled(flight.work)  # what came before may have made the chunk whole
                        return
                self._watchdog.finished(len(outcomes), time.monotonic() - sent)
                self._breaker.reset()
                self._host.settled(flight.work)
                self._wake.set()
        except ReplicaDied as error:
            self._lost(str(error))
            return
        except MemoryError:  # of this process: neither rows nor replica are to blame
            log.exception("no memory for a hand-out", extra={"action": "hand_out_failed", "pool": self._spec.name})
            await asyncio.sleep(_LOOK_SECONDS)
        except Exception as error:
            log.exception("a hand-out failed", extra={"action": "hand_out_failed", "pool": self._spec.name})
            self._lost(f"hand-out failed: {type(error).__name__}")
            return
        del self._in_flight[flight.id]
        if flight.open and not flight.work.is_dropped:
            self._feed.put_back(flight.work, sorted(flight.open))
            self._host.settled(flight.work)
        if self._is_alone:
            self._is_alone = False
            self._quarantine.survived(self)
        self._wake.set()

    async def _bury(self, reason: str) -> None:
        """Make suspects of the rows in flight, durably, before any of them runs again."""
        await self._end_receivers(_LAST_WORDS_SECONDS)  # what it finished before it died still counts
        rows_beside = self.rows_in_flight  # those of dropped chunks may be to blame as well
        flights = [flight for flight in self._in_flight.values() if not flight.work.is_dropped and flight.open]
        alone, self._is_alone = self._is_alone, False
        self._in_flight.clear()
        self._died = None
        rows = sum(len(flight.open) for flight in flights)
        log.warning(
            "replica died", extra={"action": "replica_died", "pool": self._spec.name, "rows": rows, "reason": reason}
        )
        self._host.died(rows)
        if alone or time.monotonic() - self._ready_at >= _A_WHILE_SECONDS:
            self._breaker.worked()
        if not alone:
            self._breaker.failed(reason)
        groups = [(flight.work, sorted(flight.open)) for flight in reversed(flights)]
        await self._quarantine.died(self, groups, alone=rows_beside == 1)

    def _give_back(self) -> None:
        """Let the rows in flight wait for another runner: this one ends."""
        for flight in self._in_flight.values():
            if flight.open and not flight.work.is_dropped:
                self._feed.put_back(flight.work, sorted(flight.open))
                self._host.settled(flight.work)
        self._in_flight.clear()
        self._quarantine.survived(self)

    async def _end_receivers(self, patience_seconds: float) -> None:
        tasks = [flight.task for flight in self._in_flight.values() if flight.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=patience_seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop_replica(self) -> None:
        handle, self._handle, self.info = self._handle, None, None
        if handle is not None:
            await handle.stop()

    async def drop(self, work: ChunkWork) -> None:
        """Take a chunk's rows off the replica: nobody wants them any more."""
        for flight in list(self._in_flight.values()):
            if flight.work is work and self._handle is not None:
                await self._handle.abort(flight.id)
