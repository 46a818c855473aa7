"""Retries, re-executions, crashes, lost cursors, engines that are down, terminated runs."""

from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

import milkrun as mr
from dagster_milkrun import failures, milkrun_asset, runs
from dagster_milkrun.runs import State
from milkrun import wire


@milkrun_asset
def slow_words() -> list[str]:
    return ["slow:60 word"]


@milkrun_asset
def words() -> list[str]:
    return ["a", "b"]


def kinds(kind: type[mr.MilkrunError]) -> list[type[mr.MilkrunError]]:
    return [kind, *(leaf for sub in kind.__subclasses__() for leaf in kinds(sub))]


def a_job(**facts: Any) -> wire.Job:
    plain = {
        "id": "job_1", "kind": "generate", "model": "echo", "status": "failed", "priority": 1, "input_hash": "0" * 64,
        "created_at": "2026-01-02T00:00:00Z", "rows_total": 3, "rows_failed": 2, "url": "http://engine/jobs/job_1",
    }  # fmt: skip
    return wire.Job.model_validate(plain | facts)


@pytest.mark.parametrize("kind", kinds(mr.MilkrunError), ids=lambda kind: kind.__name__)
def test_every_error_becomes_a_failure(kind: type[mr.MilkrunError]) -> None:
    """The table's word is core's word; of ended jobs, only those are tried again that a retry submits anew."""
    facts: dict[str, Any] = {}
    if issubclass(kind, mr.ResponseError):
        facts = {"status": 429, "code": "busy", "request_id": "r"}
    elif issubclass(kind, mr.WaitTimeout | mr.JobError):
        facts = {"job": a_job()}
    failure = failures.failure(kind("what happened", **facts))
    retried = kind.retryable or kind in {mr.WaitTimeout, mr.JobFailed, mr.JobExpired, mr.TooManyRowsFailed}
    assert (failure.description, failure.allow_retries) == ("what happened", retried)
    assert failure.metadata["milkrun/error"].value == kind.__name__
    if "job" in facts:
        assert failure.metadata["milkrun/job"].value == "http://engine/jobs/job_1"
        assert failure.metadata["milkrun/rows_failed"].value == 2
    if "code" in facts:
        assert failure.metadata["milkrun/code"].value == "busy"


def test_too_many_failed_rows_are_not_tried_again_where_the_same_job_would_be_found() -> None:
    error = mr.TooManyRowsFailed("what happened", job=a_job(status="succeeded"))
    assert not failures.failure(error, same_job=True).allow_retries
    assert failures.failure(mr.JobFailed("what happened", job=a_job()), same_job=True).allow_retries


def test_a_retry_after_a_crash_right_after_the_submit_finds_the_job(
    tell: Any, client: mr.Milkrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two attempts, one job."""
    plain, crashes = runs.note_submitted, [RuntimeError("the machine went away")]

    def crashing(*args: Any, **options: Any) -> None:
        if crashes:
            raise crashes.pop()
        plain(*args, **options)

    monkeypatch.setattr(runs, "note_submitted", crashing)

    @milkrun_asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def tried() -> list[str]:
        return ["slow:1 word"]

    story = tell([tried])
    first = story.run("tried")
    assert first.success
    assert len([event for event in first.all_events if event.is_step_up_for_retry]) == 1
    (job,) = client.jobs(labels={"milkrun/run_id": first.run_id})
    assert story.submitted(first, "tried") == job.id
    story.ended(first, "tried")
    (request,) = story.tick()
    assert len(story.answer(request).output_for_node("tried")) == 1


def test_a_job_whose_first_run_died_after_the_submit_is_materialized_all_the_same(
    tell: Any, client: mr.Milkrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed tells of the job though no tag does."""

    def crash(*args: Any, **options: Any) -> None:
        raise RuntimeError("the machine went away")

    story = tell([words])
    with monkeypatch.context() as patch:
        patch.setattr(runs, "note_submitted", crash)
        first = story.run("words", fails=True)
    (job,) = client.jobs(labels={"milkrun/run_id": first.run_id})
    client.wait(job.id, timeout=60)
    (request,) = story.tick()
    assert len(story.answer(request).output_for_node("words")) == 2


def test_a_retry_of_the_fetch_fetches_again(tell: Any, client: mr.Milkrun, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that was away for a moment costs the second run a retry, not a job."""
    plain, troubles = mr.Milkrun.results, [mr.ConnectError("away")]

    def away(*args: Any, **options: Any) -> Any:
        if troubles:
            raise troubles.pop()
        return plain(*args, **options)

    @milkrun_asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def fetched() -> list[str]:
        return ["a"]

    story = tell([fetched])
    first = story.run("fetched")
    story.ended(first, "fetched")
    (request,) = story.tick()
    monkeypatch.setattr(mr.Milkrun, "results", away)
    second = story.answer(request)
    assert second.success
    assert len([event for event in second.all_events if event.is_step_up_for_retry]) == 1
    assert len(client.jobs(labels={"milkrun/asset": "fetched"})) == 1


def test_a_cancelled_job_fails_its_run_and_a_re_execution_submits_anew(tell: Any, client: mr.Milkrun) -> None:
    """No retry of its own brings a cancelled job back; a person's re-execution does, under the same key."""
    story = tell([slow_words])
    first = story.run("slow_words")
    job = client.cancel(story.submitted(first, "slow_words"))
    (request,) = story.tick()
    failed = story.answer(request, fails=True)
    (event,) = [event for event in failed.all_events if event.is_step_failure]
    assert event.step_failure_data.user_failure_data.metadata["milkrun/status"].value == "cancelled"

    tags = {**request.tags, "dagster/parent_run_id": failed.run_id, "dagster/root_run_id": failed.run_id}
    again = story.instance.create_run_for_job(
        story.defs.resolve_implicit_global_asset_job_def(),
        tags=tags,
        parent_run_id=failed.run_id,
        root_run_id=failed.run_id,
    )
    assert execute_run(InMemoryJob(story.defs.resolve_implicit_global_asset_job_def()), again, story.instance).success
    newer = client.jobs(labels={"milkrun/run_id": again.run_id})
    assert [(each.retry_of, each.idempotency_key) for each in newer] == [(job.id, job.idempotency_key)]
    client.cancel(newer[0].id)


def test_a_lost_cursor_reads_held_and_submitted_jobs_by_id(tell: Any, client: mr.Milkrun) -> None:
    """Nothing that happened behind the lost cursor is missed."""
    story = tell([words, slow_words])
    story.ended(story.run("words"), "words")
    slow = story.submitted(story.run("slow_words"), "slow_words")
    held = story.instance.create_run_for_job(
        story.defs.resolve_implicit_global_asset_job_def(),
        tags={runs.JOB: slow, runs.ASSET: "slow_words", runs.STATE: State.waiting.value},
    )
    client.cancel(slow)
    story.cursor = story.cursor.replace('"feed": "', '"feed": "of-another-engine-')
    (request,) = story.tick()
    assert request.asset_selection == [dg.AssetKey("words")]
    assert story.instance.get_run_by_id(held.run_id).tags[runs.STATE] == "ready"
    story.answer(request)
    assert story.tick() == []


def test_jobs_that_ended_before_the_first_tick_are_found(tell: Any) -> None:
    story = tell([words])
    story.ended(story.run("words"), "words")
    story.cursor = None
    assert len(story.tick()) == 1


def test_a_tick_is_one_request_however_many_jobs(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed answers for all of them."""
    days = dg.StaticPartitionsDefinition([f"d{n}" for n in range(7)])

    @milkrun_asset(partitions_def=days)
    def many(context: dg.AssetExecutionContext) -> list[str]:
        return [context.partition_key]

    story = tell([many])
    for key in days.get_partition_keys():
        story.ended(story.run("many", partition=key), "many")
    asked: list[str] = []
    for name in ("changes", "jobs", "job"):
        method = getattr(mr.Milkrun, name)

        def counted(*args: Any, _method: Any = method, _name: str = name, **options: Any) -> Any:
            asked.append(_name)
            return _method(*args, **options)

        monkeypatch.setattr(mr.Milkrun, name, counted)
    assert len(story.tick()) == 7
    assert asked == ["changes"]


def test_an_engine_that_is_down_is_a_skipped_tick_and_the_next_one_recovers(
    tell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = tell([words])
    story.ended(story.run("words"), "words")
    cursor = story.cursor

    def down(*args: Any, **options: Any) -> Any:
        raise mr.ConnectError("nobody listens")

    with monkeypatch.context() as patch:
        patch.setattr(mr.Milkrun, "changes", down)
        skipped = story.evaluate()
    assert "nobody listens" in skipped.skip_message
    assert story.cursor == cursor
    assert len(story.tick()) == 1


def test_a_terminated_held_run_cancels_its_job_also_when_the_engine_was_down(
    tell: Any, client: mr.Milkrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tag that says so is written only when the engine was told."""
    story = tell([slow_words])
    job_id = story.submitted(story.run("slow_words"), "slow_words")
    (request,) = story.tick()
    held = story.instance.create_run_for_job(
        story.defs.resolve_implicit_global_asset_job_def(), tags=request.tags, status=dg.DagsterRunStatus.NOT_STARTED
    )
    story.instance.report_run_canceled(held)

    def down(*args: Any, **options: Any) -> Any:
        raise mr.ConnectError("nobody listens")

    with monkeypatch.context() as patch:
        patch.setattr(mr.Milkrun, "cancel", down)
        story.evaluate("milkrun_cancellation")
    assert not client.job(job_id).is_terminal
    story.evaluate("milkrun_cancellation")
    assert client.job(job_id).status is mr.JobStatus.cancelled
    assert story.instance.get_run_by_id(held.run_id).tags[runs.STATE] == "cancelled"
    assert story.tick() == []


def test_an_older_attempts_end_does_not_cancel_a_newer_ones_job(tell: Any, client: mr.Milkrun) -> None:
    """The claim that it has is stale by then."""
    story = tell([slow_words])
    first = story.run("slow_words")
    job = client.job(story.submitted(first, "slow_words"))
    client.attach(job.idempotency_key or "")
    story.instance.report_run_canceled(story.instance.get_run_by_id(first.run_id))
    story.evaluate("milkrun_cancellation")
    assert not client.job(job.id).is_terminal
    client.cancel(job.id)


def test_changed_inputs_replace_the_job_and_the_held_run_waits_for_the_new_one(tell: Any, client: mr.Milkrun) -> None:
    """An attempt with other rows takes the key over; the run that was held is held for the new job."""
    said = iter(["one", "two"])

    @milkrun_asset
    def changing() -> list[str]:
        return [f"slow:60 {next(said)}"]

    story = tell([changing])
    first = story.run("changing")
    old = story.submitted(first, "changing")
    (request,) = story.tick()
    job_def = story.defs.resolve_implicit_global_asset_job_def()
    held = story.instance.create_run_for_job(job_def, tags=request.tags, status=dg.DagsterRunStatus.NOT_STARTED)
    retry = story.instance.create_run_for_job(
        job_def,
        tags={"milkrun/mode": "deferred"},
        parent_run_id=first.run_id,
        root_run_id=first.run_id,
    )
    assert execute_run(InMemoryJob(job_def), retry, story.instance).success
    (newer,) = client.jobs(labels={"milkrun/run_id": retry.run_id})
    assert newer.id != old
    assert client.job(old).status is mr.JobStatus.cancelled
    tags = story.instance.get_run_by_id(held.run_id).tags
    assert (tags[runs.JOB], tags[runs.CLAIM]) == (newer.id, "1")
    assert story.tick() == []
    client.cancel(newer.id)
