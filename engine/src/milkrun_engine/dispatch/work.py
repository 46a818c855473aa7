"""
A leased chunk in the dispatcher's hands, and the feed of rows that wait for a replica.
"""

import bisect
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from milkrun.status import RowErrorCode, RowStatus
from milkrun_engine.blobs.chunk_files import InputRow, ResultRow, failed_row
from milkrun_engine.domain import quarantine
from milkrun_engine.domain.leases import Lease, Suspicion
from milkrun_engine.replicas.base import HandOutRow, Outcome

_MOST_RETURNS = 3
MOST_BYTES = 128_000_000  #: of bodies that one replica has, and of those that wait; a row may have 10 MB


@dataclass(eq=False, slots=True)
class ChunkWork:
    """
    A claimed chunk: finished rows wait here until it is whole.

    A row is named by its slot, its place in the chunk file.
    """

    lease: Lease
    rows: list[InputRow]
    waiting: deque[int] = field(default_factory=deque)  #: slots that wait for a replica
    results: dict[int, ResultRow] = field(default_factory=dict)  #: by slot
    suspects: dict[int, Suspicion] = field(default_factory=dict)
    bytes: int = 0  #: that it holds: its rows' bodies, and the outputs so far
    is_dropped: bool = False  #: its lease or its job is gone: nothing of it counts any more
    _slots: dict[int, int] = field(default_factory=dict)  # by row index
    _returns: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.suspects = dict(self.lease.suspects)
        self.bytes = sum(len(row.body) for row in self.rows)
        self._slots = {row.index: slot for slot, row in enumerate(self.rows)}
        for slot, suspicion in self.suspects.items():
            if suspicion.is_guilty:
                self.settle_crashed(slot)
        self.waiting.extend(slot for slot in range(len(self.rows)) if slot not in self.suspects)

    @property
    def order(self) -> tuple[float, int]:
        """Its place among the chunks of its pool."""
        return self.lease.rank, self.lease.chunk_id

    @property
    def is_whole(self) -> bool:
        """Whether every row has a result, so that the chunk can be committed."""
        return len(self.results) == len(self.rows)

    def quarantined(self) -> list[list[int]]:
        """Groups of slots that were in flight at a death before this lease: they run alone."""
        return quarantine.groups(self.suspects)

    def hand_out_rows(self, slots: Iterable[int]) -> list[HandOutRow]:
        """The rows of these slots as a replica gets them."""
        picked = (self.rows[slot] for slot in slots)
        return [HandOutRow(row.index, row.endpoint, row.body) for row in picked]

    def settle(self, outcome: Outcome, allowed: set[int]) -> bool:
        """
        Keep what a replica said of a row, once; false for a row that it was not given.

        Args:
            allowed: the slots of the hand-out that have no outcome yet.
        """
        slot = self._slots.get(outcome.index)
        if slot is None or slot not in allowed:
            return False
        allowed.discard(slot)
        self.bytes += len(outcome.output or b"")
        row = self.rows[slot]
        self.results[slot] = ResultRow(
            index=row.index,
            key=row.key,
            status=RowStatus.succeeded if outcome.error_code is None else RowStatus.failed,
            error_code=outcome.error_code,
            error_message=outcome.error_message,
            output=outcome.output,
            finish_reason=outcome.finish_reason,
            prompt_tokens=outcome.prompt_tokens,
            cached_tokens=outcome.cached_tokens,
            completion_tokens=outcome.completion_tokens,
            attempts=self._attempts(slot),
        )
        return True

    def settle_crashed(self, slot: int) -> None:
        """End a row that killed its replica twice while it ran alone."""
        self._fail(slot, RowErrorCode.engine_crash, "the row ended its model's process twice while it ran alone")

    def settle_unavailable(self, message: str) -> None:
        """End every row that has no result: its model can't be loaded."""
        for slot in range(len(self.rows)):
            if slot not in self.results:
                self._fail(slot, RowErrorCode.model_unavailable, message)
        self.waiting.clear()

    def put_back(self, slots: Iterable[int]) -> None:
        """Let rows wait again that a replica gave back without an outcome; too often is our own fault."""
        for slot in slots:
            self._returns[slot] = self._returns.get(slot, 0) + 1
            if self._returns[slot] >= _MOST_RETURNS:
                self._fail(slot, RowErrorCode.internal, "the replica gave the row back without an outcome")
            else:
                self.waiting.appendleft(slot)

    def _fail(self, slot: int, code: RowErrorCode, message: str) -> None:
        row = self.rows[slot]
        self.results[slot] = failed_row(row.index, row.key, code, message, self._attempts(slot))

    def _attempts(self, slot: int) -> int:
        suspicion = self.suspects.get(slot)
        return self.lease.attempts + (suspicion.deaths if suspicion else 0)


class Feed:
    """Chunks with rows that wait for a replica of one pool, the soonest first."""

    def __init__(self) -> None:
        self._works: list[ChunkWork] = []
        self.waiting_rows = 0

    def add(self, work: ChunkWork) -> None:
        """Let a chunk's waiting rows be taken."""
        if work.waiting:
            bisect.insort(self._works, work, key=lambda known: known.order)
            self.waiting_rows += len(work.waiting)

    def take(self, most: int, most_bytes: int) -> tuple[ChunkWork, list[int]] | None:
        """Take the next rows, all of one chunk; at least one, however large it is."""
        if not self._works:
            return None
        work = self._works[0]
        slots: list[int] = []
        while work.waiting and len(slots) < most:
            most_bytes -= len(work.rows[work.waiting[0]].body)
            if slots and most_bytes < 0:
                break
            slots.append(work.waiting.popleft())
        self.waiting_rows -= len(slots)
        if not work.waiting:
            del self._works[0]
        return work, slots

    def put_back(self, work: ChunkWork, slots: Sequence[int]) -> None:
        """Return rows that were taken."""
        self.remove(work)
        work.put_back(slots)
        self.add(work)

    def remove(self, work: ChunkWork) -> None:
        """Forget a chunk's waiting rows."""
        if work in self._works:
            self._works.remove(work)
            self.waiting_rows -= len(work.waiting)

    def rank_at(self, row: int) -> float | None:
        """The rank of the waiting row at this place, from 1; None when fewer wait."""
        for work in self._works:
            row -= len(work.waiting)
            if row <= 0:
                return work.lease.rank
        return None
