"""
The small rules: order of service, states, sampling, ids.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milkrun.status import TERMINAL, JobStatus
from milkrun_engine.domain import sampling
from milkrun_engine.domain.errors import InvalidRequest
from milkrun_engine.domain.ids import new_id
from milkrun_engine.domain.priorities import AGEING_SECONDS, rank
from milkrun_engine.domain.states import LIVE, MOVES, sources

priorities = st.integers(-1, 10)
instants = st.floats(0, 4e9)


@given(at=instants, sooner=priorities, later=priorities)
def test_at_the_same_moment_the_smaller_priority_is_first(at: float, sooner: int, later: int) -> None:
    assert (rank(sooner, at) < rank(later, at)) is (sooner < later)


@given(priority=priorities, at=instants, wait=st.floats(0.001, 1e6))
def test_equals_are_served_in_their_order(priority: int, at: float, wait: float) -> None:
    assert rank(priority, at) < rank(priority, at + wait)


@given(sooner=priorities, later=priorities, at=instants)
def test_a_later_priority_waits_an_hour_a_step_at_most(sooner: int, later: int, at: float) -> None:
    steps = max(0, later - sooner)
    assert rank(later, at) < rank(sooner, at + steps * AGEING_SECONDS + 1)


def test_every_status_has_its_moves_and_only_ends_have_none() -> None:
    assert set(MOVES) == set(JobStatus)
    assert {status for status, targets in MOVES.items() if not targets} == TERMINAL
    assert set(LIVE) == set(JobStatus) - TERMINAL


def test_moves_go_forward_only() -> None:
    order = list(JobStatus)
    for source, targets in MOVES.items():
        assert all(order.index(target) > order.index(source) for target in targets)
        for target in targets:
            assert MOVES[target] <= targets, "what can be reached by two moves can be reached by one statement"


@pytest.mark.parametrize("status", list(JobStatus))
def test_sources_are_the_moves_read_backwards(status: JobStatus) -> None:
    assert set(sources(status)) == {source for source in JobStatus if status in MOVES[source]}


def test_known_sampling_parameters_pass() -> None:
    sampling.check(dict.fromkeys(sampling.KNOWN - {"n"}, 1) | {"n": 16})


def test_a_typing_error_is_told_with_the_right_name() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'temperature'"):
        sampling.check({"temprature": 0})


@pytest.mark.parametrize("n", [0, 17, "2", 1.5, None])
def test_the_number_of_choices_is_bounded(n: object) -> None:
    with pytest.raises(InvalidRequest):
        sampling.check({"n": n})


def test_ids_say_what_they_name_and_never_repeat() -> None:
    ids = {new_id("job") for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(one.startswith("job_") and one[4:].isalnum() and len(one) == 26 for one in ids)
