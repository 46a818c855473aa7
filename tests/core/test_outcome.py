"""The verdict on a job: total over the statuses."""

from typing import Any

import pytest

import milkrun as mr
from milkrun import outcome


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("succeeded", None),
        ("failed", mr.JobFailed),
        ("cancelled", mr.JobCancelled),
        ("expired", mr.JobExpired),
        ("preparing", ValueError),
        ("queued", ValueError),
        ("running", ValueError),
    ],
)
def test_every_status_has_a_verdict(status: str, error: type[Exception] | None, build: Any) -> None:
    job = build.job(status=status, failure={"code": "model_unavailable", "message": "it would not load"})
    if error is None:
        assert job == outcome.check(job)
        return
    with pytest.raises(error, match="Job job_1") as caught:
        outcome.check(job)
    if isinstance(caught.value, mr.JobError):
        assert job == caught.value.job


def test_statuses_are_all_judged() -> None:
    parameters = test_every_status_has_a_verdict.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert set(mr.JobStatus) == {status for status, _ in parameters}


def test_failed_rows_fail_no_job_unless_they_are_too_many(build: Any) -> None:
    job = build.job(status="succeeded", rows_failed=2)
    assert job == outcome.check(job)
    assert job == outcome.check(job, 2)
    with pytest.raises(mr.TooManyRowsFailed):
        outcome.check(job, 1)


def test_a_sentence_says_how_it_ended(build: Any) -> None:
    usage = {"prompt_tokens": 40_285, "cached_tokens": 26_368, "completion_tokens": 414}
    job = build.job(status="succeeded", rows_total=208, rows_succeeded=207, rows_failed=1, usage=usage)
    job = job.model_copy(update={"row_errors": {"invalid_row": 1}})
    said = "succeeded: 207 of 208 rows, 1 failed (invalid_row: 1); 40,285 tokens in (26,368 cached), 414 out"
    assert outcome.sentence(job).startswith(said)


def test_a_summary_is_flat(build: Any) -> None:
    facts = outcome.summary(build.job(status="failed", failure={"code": "c", "message": "m"}))
    assert {type(value) for value in facts.values()} <= {str, int, float, type(None)}
    assert (facts["job_id"], facts["status"], facts["failure"]) == ("job_1", "failed", "c: m")
