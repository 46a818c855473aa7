"""
Which suspects run next: the bisection that isolates a row that kills its replica.

A group of suspects of one chunk runs alone on a replica. When the replica dies again the
group is halved, newest rows first (an engine mostly dies of what it was just given), until
a single row has killed alone twice. For W rows in flight that is at most ⌈log2 W⌉ + 3 deaths.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from milkrun_engine.domain.leases import Suspicion

T = TypeVar("T")


def halves(group: Sequence[T]) -> list[Sequence[T]]:
    """Split a group that killed its replica; a single row stays as it is."""
    if len(group) == 1:
        return [group]
    middle = len(group) // 2
    return [group[middle:], group[:middle]]


def after_death(suspects: Mapping[int, Suspicion], in_flight: Sequence[int], *, alone: bool) -> dict[int, Suspicion]:
    """Count one more death against the slots that were in flight; `alone` when it was one row by itself."""
    counted = dict(suspects)
    for slot in in_flight:
        old = counted.get(slot, Suspicion())
        counted[slot] = Suspicion(deaths=old.deaths + 1, alone=old.alone + int(alone))
    return counted


def groups(suspects: Mapping[int, Suspicion]) -> list[list[int]]:
    """
    Groups of slots to run alone after the dispatcher was restarted: the most suspect first.

    Rows with equally many deaths were in the same group before; it had killed, so it is halved.
    """
    by_deaths: dict[int, list[int]] = {}
    for slot, suspicion in suspects.items():
        if suspicion.deaths and not suspicion.is_guilty:
            by_deaths.setdefault(suspicion.deaths, []).append(slot)
    ordered = [sorted(slots) for _, slots in sorted(by_deaths.items(), reverse=True)]
    return [list(half) for group in ordered for half in halves(group)]
