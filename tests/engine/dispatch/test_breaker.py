"""
When a model is given up.
"""

import pytest

from milkrun_engine.dispatch import breaker
from milkrun_engine.dispatch.breaker import Breaker


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [0.0]
    monkeypatch.setattr(breaker.time, "monotonic", lambda: now[0])
    return now


def test_a_model_that_does_not_load_is_given_up_in_time(clock: list[float]) -> None:
    found = Breaker(give_up_seconds=60)
    found.failed("no weights")
    clock[0] = 59.0
    found.failed("no weights")
    assert not found.gave_up
    clock[0] = 60.0
    assert found.gave_up


def test_a_replica_that_ran_for_a_while_begins_a_new_series(clock: list[float]) -> None:
    """A row that hangs it for an hour, twice, does not end the others' rows."""
    found = Breaker(give_up_seconds=60)
    found.failed("stuck")
    clock[0] = 3_600.0
    found.worked()
    found.failed("stuck")
    assert not found.gave_up
