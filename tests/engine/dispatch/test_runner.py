"""
A replica's runner where others interfere: suspects that were dropped, a place that starts nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from milkrun.status import RowErrorCode
from milkrun_engine.blobs.chunk_files import InputRow
from milkrun_engine.dispatch.breaker import Breaker
from milkrun_engine.dispatch.patience import Patience
from milkrun_engine.dispatch.quarantine import Quarantine
from milkrun_engine.dispatch.runner import ReplicaRunner
from milkrun_engine.dispatch.watchdog import Watchdog
from milkrun_engine.dispatch.work import MOST_BYTES, ChunkWork, Feed
from milkrun_engine.domain.leases import Lease, Suspicion
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.domain.rows import CHAT
from milkrun_engine.replicas.base import HandOut, HandOutRow, Outcome, ReplicaInfo

pytestmark = pytest.mark.anyio
_SECONDS = 5.0


def a_work(number: int, rows: int = 8, body: bytes = b"{}") -> ChunkWork:
    lease = Lease(
        chunk_id=number, number=number, job_id=f"job_{number}", tenant_id="default", pool="echo", rank=0.0, priority=1,
        epoch=1, job_epoch=1, attempts=1, rows=rows, input_blob="", input_sha256="", defaults=b"{}",
    )  # fmt: skip
    return ChunkWork(lease, [InputRow(number * rows + slot, None, CHAT, body) for slot in range(rows)])


class Handle:
    """A replica that answers when it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.lives = True
        self.kills = 0
        self.has_place = asyncio.Event()
        self.has_place.set()
        self.loads = True

    async def placed(self) -> None:
        await self.has_place.wait()

    async def ready(self) -> ReplicaInfo:
        while not self.loads:
            await asyncio.sleep(0.01)
        return ReplicaInfo(window_rows=8, handout_rows=8)

    async def run(self, handout: HandOut) -> AsyncIterator[list[Outcome]]:
        await self.let.wait()
        yield [outcome for row in handout.rows for outcome in self.answer(row)]

    def answer(self, row: HandOutRow) -> list[Outcome]:
        return [Outcome(row.index, output=b'"ok"')]

    async def beat(self) -> None:
        while not self.lives:
            await asyncio.sleep(0.01)

    async def kill(self) -> None:
        self.kills += 1

    async def abort(self, handout_id: int) -> None:
        """Nothing runs on."""

    async def stop(self) -> None:
        """Nothing is left."""


class Place:
    """A pool that starts one handle over and over, or nothing."""

    def __init__(self, handle: Handle | None) -> None:
        self.handle = handle

    async def start(self) -> None:
        """Nothing to do."""

    async def start_replica(self, spec: ModelSpec) -> Handle:
        if self.handle is None:
            raise OSError("no process")
        return self.handle

    async def stop(self) -> None:
        """Nothing to do."""


class Bench:
    """One runner with its feed and quarantine."""

    def __init__(self, handle: Handle | None, *, silence_seconds: float = 60.0, load_seconds: float = 60.0) -> None:
        self.feed = Feed()
        self.quarantine = Quarantine(self.suspect, self.settled)
        self.breaker = Breaker(give_up_seconds=60)
        self.reasons: list[str] = []
        self.whole = False  # the chunk that was told of last
        self.runner = ReplicaRunner(
            spec=ModelSpec(name="echo", weights="", replica="echo"), pool=Place(handle), feed=self.feed,
            quarantine=self.quarantine, breaker=self.breaker, host=self,
            patience=Patience(load=load_seconds, silence=silence_seconds, give_up=60.0),
        )  # fmt: skip

    def wake(self) -> None:
        """There is nothing to claim."""

    def settled(self, work: ChunkWork) -> None:
        """Nobody commits here."""
        self.whole = work.is_whole

    def died(self, suspects: int) -> None:
        """Nobody counts here."""

    async def suspect(self, _work: ChunkWork, _suspects: dict[int, Suspicion]) -> bool:
        self.reasons.append(self.breaker.reason)
        return True

    @asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(self.runner.run())
        try:
            yield task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SECONDS):
        while not true():
            await asyncio.sleep(0.01)


async def test_rows_run_after_the_suspects_they_waited_for_were_dropped() -> None:
    handle = Handle()
    bench = Bench(handle)
    first, later, suspect = a_work(0), a_work(1), a_work(2)
    suspect.suspects = {0: Suspicion(deaths=1), 1: Suspicion(deaths=1)}
    bench.feed.add(first)
    async with bench.running():
        await until(lambda: bench.runner.rows_in_flight == 8)
        bench.quarantine.add(suspect)
        bench.feed.add(later)
        bench.runner.wake()
        await asyncio.sleep(0.05)  # the runner has seen the suspects: its window drains
        suspect.is_dropped = True
        bench.quarantine.forget(suspect)
        handle.let.set()
        await until(lambda: first.is_whole and later.is_whole)


async def test_rows_that_come_in_without_a_word_are_found() -> None:
    handle = Handle()
    handle.let.set()
    bench, work = Bench(handle), a_work(0)
    async with bench.running():
        await until(lambda: bench.runner.info is not None)
        await asyncio.sleep(0.05)
        bench.feed.add(work)
        await until(lambda: work.is_whole)


async def test_a_place_that_starts_nothing_counts_as_a_model_that_does_not_load() -> None:
    bench = Bench(None)
    async with bench.running() as task:
        await until(lambda: bench.breaker.failures >= 2)
        assert not task.done()
        assert "no process" in bench.breaker.reason


async def test_a_cancelled_runner_gives_its_rows_back() -> None:
    bench, work = Bench(Handle()), a_work(0)
    bench.feed.add(work)
    async with bench.running():
        await until(lambda: bench.runner.rows_in_flight == 8)
        assert bench.feed.waiting_rows == 0
    assert bench.feed.waiting_rows == 8


async def test_a_replica_has_no_more_bytes_than_the_bound() -> None:
    handle = Handle()
    bench, work = Bench(handle), a_work(0, body=bytes(30_000_000))
    bench.feed.add(work)
    async with bench.running():
        await until(lambda: bench.runner.rows_in_flight > 0)
        await asyncio.sleep(0.05)
        assert bench.runner.rows_in_flight == MOST_BYTES // 30_000_000
        handle.let.set()
        await until(lambda: work.is_whole)


async def test_a_row_larger_than_the_bound_goes_alone() -> None:
    handle = Handle()
    bench, work = Bench(handle), a_work(0, rows=2, body=bytes(MOST_BYTES + 1))
    bench.feed.add(work)
    async with bench.running():
        await until(lambda: bench.runner.rows_in_flight > 0)
        await asyncio.sleep(0.05)
        assert bench.runner.rows_in_flight == 1
        handle.let.set()
        await until(lambda: work.is_whole)


async def test_a_replica_that_answers_no_beat_is_killed_and_its_rows_are_suspects() -> None:
    handle = Handle()
    bench, work = Bench(handle, silence_seconds=0.1), a_work(0)
    bench.feed.add(work)
    async with bench.running():
        await until(lambda: bench.runner.rows_in_flight == 8)
        await asyncio.sleep(0.3)
        assert (0, set()) == (handle.kills, set(work.suspects)), "a row may take long"
        handle.lives = False
        await until(lambda: len(work.suspects) == 8)
        assert handle.kills == 1
        assert "no sign of life" in bench.breaker.reason


LIES = {
    "not JSON": lambda row: [Outcome(row.index, output=b"NaN")],
    "not UTF-8": lambda row: [Outcome(row.index, output=b'"\xff"')],
    "twice": lambda row: [Outcome(row.index, output=b'"ok"')] * 2,
    "foreign": lambda row: [Outcome(row.index + 1_000, output=b'"ok"')],
    "nothing": lambda row: [Outcome(row.index)],
    "both": lambda row: [Outcome(row.index, output=b'"ok"', error_code=RowErrorCode.internal)],
    "tokens": lambda row: [Outcome(row.index, output=b'"ok"', prompt_tokens=-1)],
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_replica_that_lies_is_killed_and_the_row_runs_again(lie: str) -> None:
    handle = Handle()
    handle.let.set()
    bench, work = Bench(handle), a_work(0)
    answers = iter([LIES[lie]])
    honest = handle.answer

    def lies_once(row: HandOutRow) -> list[Outcome]:
        return next(answers, honest)(row)

    handle.answer = lies_once
    bench.feed.add(work)
    async with bench.running():
        await until(lambda: work.is_whole)
    assert handle.kills == 1
    assert "it lied" in bench.reasons[0]
    assert [b'"ok"'] * 8 == [row.output for row in work.results.values()]


async def test_a_chunk_whose_last_row_came_twice_is_committed_all_the_same() -> None:
    handle = Handle()
    handle.let.set()
    handle.answer = LIES["twice"]
    bench, work = Bench(handle), a_work(0, rows=1)
    bench.feed.add(work)
    async with bench.running():
        await until(lambda: handle.kills == 1)
        await until(lambda: bench.whole)


async def test_only_loading_is_timed_not_the_wait_for_a_place() -> None:
    handle = Handle()
    handle.has_place.clear()
    bench = Bench(handle, load_seconds=0.1)
    async with bench.running():
        await until(lambda: bench.runner.is_loading)
        await asyncio.sleep(0.3)
        assert (True, 0) == (bench.runner.is_loading, bench.breaker.failures)
        handle.loads = False
        handle.has_place.set()
        await until(lambda: bench.breaker.failures > 0)
        assert "had not loaded after" in bench.breaker.reason
        handle.loads = True
        await until(lambda: bench.runner.info is not None)


async def test_an_engine_without_memory_for_a_hand_out_blames_nobody() -> None:
    handle = Handle()
    handle.let.set()
    bench, work = Bench(handle), a_work(0)
    honest, times = handle.answer, iter([True])

    def fails_once(row: HandOutRow) -> list[Outcome]:
        if next(times, False):
            raise MemoryError
        return honest(row)

    handle.answer = fails_once
    bench.feed.add(work)
    async with bench.running():
        await until(lambda: work.is_whole)
    assert (0, {}, []) == (handle.kills, work.suspects, bench.reasons)


async def test_a_watchdog_that_fails_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, times = Handle(), iter([True])
    passed = Watchdog.passed

    def fails_once(watchdog: Watchdog, seconds: float, *, rows_in_flight: int) -> str | None:
        if next(times, False):
            raise MemoryError
        return passed(watchdog, seconds, rows_in_flight=rows_in_flight)

    monkeypatch.setattr(Watchdog, "passed", fails_once)
    bench, work = Bench(handle, silence_seconds=0.1), a_work(0)
    bench.feed.add(work)
    async with bench.running():
        await until(lambda: bench.runner.rows_in_flight == 8)
        handle.lives = False
        await until(lambda: handle.kills == 1)
