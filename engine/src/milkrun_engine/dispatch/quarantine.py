"""
The quarantine lane of a pool: suspects run alone, one group at a time, on one replica.

The bisection itself is in `domain/quarantine.py`; here are the waiting groups and their turn.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from milkrun_engine.dispatch.work import ChunkWork
from milkrun_engine.domain import quarantine
from milkrun_engine.domain.leases import Suspicion


class Quarantine:
    """
    Groups of suspects that wait, the newest first.

    Args:
        suspect: writes a chunk's suspects into the ledger; false when its lease is lost.
        settled: told when rows of a chunk were ended here.
    """

    def __init__(
        self,
        suspect: Callable[[ChunkWork, dict[int, Suspicion]], Awaitable[bool]],
        settled: Callable[[ChunkWork], None],
    ) -> None:
        self._suspect = suspect
        self._settled = settled
        self._groups: deque[tuple[ChunkWork, list[int]]] = deque()
        self._guard: object | None = None  # the runner that lets its window drain, or runs a group

    def add(self, work: ChunkWork) -> None:
        """Let the suspects of a newly claimed chunk wait for their turn."""
        self._groups.extend((work, group) for group in work.quarantined())

    def wants(self, runner: object) -> bool:
        """Whether this runner is to run a group next; it then takes no other rows."""
        if self._guard is None and self._groups:
            self._guard = runner
        return self._guard is runner

    def take(self, runner: object) -> tuple[ChunkWork, list[int]] | None:
        """The group to run alone now; none when the others were dropped meanwhile."""
        while self._groups:
            work, slots = self._groups.popleft()
            if not work.is_dropped:
                return work, slots
        self.survived(runner)
        return None

    def survived(self, runner: object) -> None:
        """The runner's group has ended without a death, or there is none: other rows may run beside again."""
        if self._guard is runner:
            self._guard = None

    async def died(self, runner: object, groups: Sequence[tuple[ChunkWork, list[int]]], *, alone: bool) -> None:
        """
        Count a death against the rows in flight, and let them wait to run alone.

        Args:
            groups: by hand-out, the newest first.
            alone: a single row was in flight, nobody's beside it.
        """
        self.survived(runner)
        waiting: list[tuple[ChunkWork, list[int]]] = []
        for work, slots in groups:
            # Counted before the write, so that another replica's death meanwhile counts on from here.
            suspects = work.suspects = quarantine.after_death(work.suspects, slots, alone=alone)
            if not await self._suspect(work, suspects):
                work.is_dropped = True
                continue
            guilty = [slot for slot in slots if suspects[slot].is_guilty]
            for slot in guilty:
                work.settle_crashed(slot)
            if guilty:
                self._settled(work)
            left = [slot for slot in slots if not suspects[slot].is_guilty]
            if left:
                waiting.append((work, left))
        if len(waiting) == 1:
            work, slots = waiting[0]
            waiting = [(work, list(half)) for half in quarantine.halves(slots)]
        self._groups.extendleft(reversed(waiting))

    def forget(self, work: ChunkWork) -> None:
        """Take a chunk's groups out."""
        self._groups = deque(group for group in self._groups if group[0] is not work)
