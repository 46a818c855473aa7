"""
The quarantine lane of a pool: one poison row among hand-outs of several chunks.
"""

import pytest

from milkrun.status import RowErrorCode
from milkrun_engine.blobs.chunk_files import InputRow
from milkrun_engine.dispatch.quarantine import Quarantine
from milkrun_engine.dispatch.work import ChunkWork
from milkrun_engine.domain.leases import Lease, Suspicion
from milkrun_engine.domain.rows import CHAT
from milkrun_engine.replicas.base import Outcome

pytestmark = pytest.mark.anyio


def a_work(number: int, rows: int = 32, **facts: object) -> ChunkWork:
    plain = {
        "chunk_id": number, "number": number, "job_id": "job_1", "tenant_id": "default", "pool": "echo", "rank": 0.0,
        "priority": 1, "epoch": 1, "job_epoch": 1, "attempts": 1, "rows": rows, "input_blob": "", "input_sha256": "",
        "defaults": b"{}",
    }  # fmt: skip
    inputs = [InputRow(number * rows + slot, None, CHAT, b"{}") for slot in range(rows)]
    return ChunkWork(Lease(**(plain | facts)), inputs)


class Lane:
    """A quarantine with what it told, and one runner."""

    def __init__(self) -> None:
        self.written: list[dict[int, Suspicion]] = []
        self.held = True
        self.settled: list[ChunkWork] = []
        self.quarantine = Quarantine(self.suspect, self.settled.append)

    async def suspect(self, _work: ChunkWork, suspects: dict[int, Suspicion]) -> bool:
        self.written.append(suspects)
        return self.held

    async def run(self, poison: tuple[ChunkWork, int] | None) -> int:
        """Run all groups; returns the deaths."""
        deaths = 0
        while self.quarantine.wants(self):
            taken = self.quarantine.take(self)
            if taken is None:
                break
            work, slots = taken
            if poison is not None and work is poison[0] and poison[1] in slots:
                deaths += 1
                await self.quarantine.died(self, [(work, slots)], alone=len(slots) == 1)
            else:
                allowed = set(slots)
                assert all(work.settle(Outcome(work.rows[slot].index, output=b'"ok"'), allowed) for slot in slots)
                self.quarantine.survived(self)
        return deaths


@pytest.mark.parametrize("poison", [(0, 0), (0, 31), (3, 17), (7, 31)])
async def test_a_poison_row_is_alone_and_its_neighbours_have_results(poison: tuple[int, int]) -> None:
    lane, works = Lane(), [a_work(number) for number in range(8)]
    for work in works:
        work.waiting.clear()
    guilty = works[poison[0]]
    await lane.quarantine.died(lane, [(work, list(range(32))) for work in reversed(works)], alone=False)
    assert 1 + await lane.run((guilty, poison[1])) <= 11, "⌈log2 256⌉ + 3"
    for work in works:
        failed = {slot for slot, row in work.results.items() if row.error_code is RowErrorCode.engine_crash}
        assert failed == ({poison[1]} if work is guilty else set())
        assert work.is_whole
    assert guilty in lane.settled


async def test_suspects_are_written_before_they_run_again() -> None:
    lane, work = Lane(), a_work(0)
    work.waiting.clear()
    await lane.quarantine.died(lane, [(work, [3, 4])], alone=False)
    assert lane.written == [{3: Suspicion(deaths=1), 4: Suspicion(deaths=1)}]
    assert work.suspects == lane.written[0]


async def test_a_chunk_whose_lease_is_lost_is_dropped() -> None:
    lane, work = Lane(), a_work(0)
    lane.held = False
    await lane.quarantine.died(lane, [(work, [3, 4])], alone=False)
    assert work.is_dropped
    assert lane.quarantine.take(lane) is None


async def test_one_runner_at_a_time_runs_suspects() -> None:
    lane, work, other = Lane(), a_work(0), object()
    await lane.quarantine.died(lane, [(work, [1, 2, 3])], alone=False)
    assert lane.quarantine.wants(lane)
    assert not lane.quarantine.wants(other)
    await lane.run(None)
    assert not lane.quarantine.wants(other), "nothing is left to run"


async def test_a_newly_claimed_chunk_brings_its_suspects() -> None:
    suspects = {0: Suspicion(deaths=2, alone=1), 1: Suspicion(deaths=1), 2: Suspicion(deaths=3, alone=2)}
    lane, work = Lane(), a_work(0, 4, suspects=suspects)
    assert list(work.waiting) == [3], "suspects are no ordinary rows any more"
    assert work.results[2].error_code is RowErrorCode.engine_crash, "the guilty one does not run again"
    lane.quarantine.add(work)
    await lane.run(None)
    assert set(work.results) == {0, 1, 2}


async def test_forgotten_chunks_do_not_run() -> None:
    lane, work = Lane(), a_work(0)
    await lane.quarantine.died(lane, [(work, [1, 2])], alone=False)
    lane.quarantine.forget(work)
    assert not lane.quarantine.wants(lane)
