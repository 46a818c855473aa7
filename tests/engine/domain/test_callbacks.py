"""
When a callback is tried again, and for how long.
"""

from dataclasses import replace

import pytest

from milkrun.status import CallbackKind, JobStatus
from milkrun_engine.domain import callbacks
from milkrun_engine.domain.callbacks import Attempt, DueCallback, next_delay

DUE = DueCallback(
    id="callback_1", job_id="job_1", receiver="http://a.test", attempts=0, age_seconds=0, kind=CallbackKind.generic,
    url="http://a.test", secrets=(), headers={}, status=JobStatus.succeeded, finished_at=0, labels={}, rows_total=1,
    rows_succeeded=1, rows_failed=0,
)  # fmt: skip
RESUME = replace(DUE, kind=CallbackKind.prefect_resume)


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "_JITTER", 0.0)


def test_a_generic_one_is_tried_ten_times_over_75_hours() -> None:
    delays = [next_delay(replace(DUE, attempts=made), Attempt.failed) for made in range(10)]
    assert (5.0, 300.0, None) == (delays[0], delays[1], delays[-1])
    waited = [delay for delay in delays if delay is not None]
    assert (9, 75) == (len(waited), sum(waited) // 3_600)
    assert waited == sorted(waited)


def test_a_resume_is_tried_soon_and_on_for_75_hours() -> None:
    first = [next_delay(replace(RESUME, attempts=made), Attempt.failed) for made in range(5)]
    assert [1.0, 2.0, 5.0, 10.0, 30.0] == first
    late = replace(RESUME, attempts=900, age_seconds=74 * 3_600)
    assert 300.0 == next_delay(late, Attempt.failed)
    assert None is next_delay(replace(late, age_seconds=76 * 3_600), Attempt.failed)


def test_a_resume_that_is_sent_again_much_later_is_tried_for_hours() -> None:
    again = [next_delay(replace(RESUME, attempts=made, age_seconds=30 * 86_400), Attempt.failed) for made in range(51)]
    assert (1.0, None) == (again[0], again[50])
    assert 3 <= sum(delay or 0 for delay in again) / 3_600 <= 5


def test_a_flow_that_has_not_suspended_yet_is_tried_within_seconds_and_never_later_than_a_minute() -> None:
    delays = [next_delay(replace(RESUME, attempts=made), Attempt.too_early) for made in range(100)]
    assert max(delays[:6]) <= 5
    assert max(delays) == 60


@pytest.mark.parametrize("due", [DUE, RESUME], ids=lambda due: due.kind)
@pytest.mark.parametrize("attempt", [Attempt.delivered, Attempt.unwanted])
def test_what_was_taken_or_is_not_wanted_is_not_tried_again(due: DueCallback, attempt: Attempt) -> None:
    assert None is next_delay(due, attempt)


def test_delays_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "_JITTER", 0.1)
    delays = {next_delay(replace(DUE, attempts=1), Attempt.failed) for _ in range(50)}
    assert len(delays) > 10
    assert 270 <= min(delays) < max(delays) <= 330
