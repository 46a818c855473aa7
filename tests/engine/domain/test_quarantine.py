"""
A row that kills its replica is found in few deaths, and its neighbours are never blamed.
"""

import math
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from milkrun_engine.domain import quarantine
from milkrun_engine.domain.leases import Suspicion


def deaths_until_found(window: int, poison: int, *, restarts: frozenset[int] = frozenset()) -> int:
    """
    Run a window of rows as the quarantine lane does; returns how often a replica died.

    Args:
        restarts: deaths behind which the dispatcher is restarted, and knows only what was written.
    """
    slots = list(range(window))
    suspects = quarantine.after_death({}, slots, alone=window == 1)
    waiting = deque(map(list, quarantine.halves(slots)))
    deaths = 1
    to_come = set(restarts)
    while not suspects[poison].is_guilty:
        if deaths in to_come:
            to_come.remove(deaths)
            waiting = deque(quarantine.groups(suspects))
        group = waiting.popleft()
        if poison not in group:
            continue  # it ends without a death
        deaths += 1
        suspects = quarantine.after_death(suspects, group, alone=len(group) == 1)
        waiting.extendleft(reversed([list(half) for half in quarantine.halves(group)]))
        assert deaths <= window + 3
    assert {slot for slot in slots if suspects[slot].is_guilty} == {poison}
    return deaths


def bound(window: int) -> int:
    return math.ceil(math.log2(window)) + 3


def test_one_poison_row_is_found_within_the_bound() -> None:
    for window in range(1, 257):
        for poison in {0, 1, window // 3, window // 2, window - 1} & set(range(window)):
            assert deaths_until_found(window, poison) <= bound(window), (window, poison)


@given(data=st.data(), window=st.integers(1, 256), restarts=st.frozensets(st.integers(1, 12)))
def test_restarts_in_between_cost_no_death(data: st.DataObject, window: int, restarts: frozenset[int]) -> None:
    poison = data.draw(st.integers(0, window - 1))
    assert deaths_until_found(window, poison, restarts=restarts) <= bound(window)


@given(
    suspects=st.dictionaries(
        st.integers(0, 40), st.builds(Suspicion, deaths=st.integers(0, 5), alone=st.integers(0, 3))
    )
)
def test_after_a_restart_every_suspect_who_is_not_guilty_waits_once(suspects: dict[int, Suspicion]) -> None:
    waiting = [slot for group in quarantine.groups(suspects) for slot in group]
    expected = [slot for slot, suspicion in suspects.items() if suspicion.deaths and not suspicion.is_guilty]
    assert sorted(waiting) == sorted(expected)


@given(group=st.lists(st.integers(), min_size=1, max_size=60))
def test_halves_are_the_group_the_newest_first(group: list[int]) -> None:
    parts = [list(part) for part in quarantine.halves(group)]
    assert [row for part in reversed(parts) for row in part] == group
    assert len(parts) == min(2, len(group))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_death_alone_counts_as_such() -> None:
    once = quarantine.after_death({}, [1, 2], alone=False)
    twice = quarantine.after_death(once, [2], alone=True)
    assert once == {1: Suspicion(deaths=1), 2: Suspicion(deaths=1)}, "what was written is not changed"
    assert twice == {1: Suspicion(deaths=1), 2: Suspicion(deaths=2, alone=1)}
    assert not twice[2].is_guilty
    assert quarantine.after_death(twice, [2], alone=True)[2].is_guilty
