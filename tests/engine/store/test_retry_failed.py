"""
A retry runs only the rows of an ended job that have no result, as a whole job of its own.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from unittest.mock import patch

import pytest
from fix_store import World, echo

from milkrun.status import InputFormat, JobStatus, OnMismatch, Reuse
from milkrun.wire import JobSpec
from milkrun_engine.domain import planning
from milkrun_engine.domain.errors import IdempotencyMismatch, InputDeleted, NotEnded, NotFound, NothingToRetry
from milkrun_engine.domain.jobs import JobFilter, NewRetry, SubmitResult
from milkrun_engine.replicas.base import Outcome

KEY = "dag/task/run/1"
ROWS = ["good", "fail", "good", "fail", 3, "good"]  # the third kind is refused in preparation
FAILED = [1, 3, 4]


def there(_blob: str) -> bool:
    return True


def retry(world: World, job_id: str, **facts: Any) -> SubmitResult:
    return world.store.retries.retry(NewRetry(tenant_id=world.tenant, parent=job_id, **facts), there)


def ended(world: World, rows: Any = ROWS, **facts: Any) -> str:
    """A job that has ended, some of its rows failed."""
    job_id = world.prepared(rows, **facts)
    world.run()
    assert world.job(job_id).status is JobStatus.succeeded
    return job_id


def answered(index: int, body: bytes) -> Outcome:
    """A model that has been mended."""
    return echo(index, body.replace(b"fail", b"mend"))


def run_all(world: World, answer: Callable[[int, bytes], Outcome] = answered) -> list[int]:
    """Prepare and run what waits; returns the rows that ran."""
    ran: list[int] = []

    def noted(index: int, body: bytes) -> Outcome:
        ran.append(index)
        return answer(index, body)

    world.prepare()
    while leases := world.claim(16):
        for lease in leases:
            assert world.finish(lease, noted).accepted
    return sorted(ran)


def test_only_the_failed_rows_run_and_the_result_is_the_whole_table(world: World) -> None:
    parent = ended(world)
    before = world.results(parent)
    made = retry(world, parent)
    assert (False, parent) == (made.reused, made.job.rows_from)
    assert [1, 3] == run_all(world), "the refused row is refused again without running"
    job = world.job(made.job.id)
    assert (JobStatus.succeeded, 6, 5, 1, 3) == (
        job.status, job.rows_total, job.rows_succeeded, job.rows_failed, job.rows_reused,
    )  # fmt: skip
    after = world.results(made.job.id)
    assert [before[index] for index in (0, 2, 5)] == [after[index] for index in (0, 2, 5)]
    assert ["succeeded"] * 4 + ["failed", "succeeded"] == [row["status"] for row in after]


def test_tokens_of_rows_taken_over_are_not_counted_again(world: World) -> None:
    parent = ended(world)
    made = retry(world, parent)
    run_all(world)
    assert (6, 3) == (world.job(parent).prompt_tokens, world.job(parent).completion_tokens)
    assert (4, 2) == (world.job(made.job.id).prompt_tokens, world.job(made.job.id).completion_tokens)
    assert (0, 3) == (world.job(parent).rows_reused, world.job(made.job.id).rows_reused)


def test_everything_is_the_parents_unless_given(world: World) -> None:
    facts = {
        "name": "n", "description": "d", "labels": {"a": "b"}, "external_url": "https://a.test", "priority": 7,
        "spec": JobSpec(sampling={"seed": 1}), "abort_after_failed_rows": 99, "callback": {"url": "https://receiver.test/"},
    }  # fmt: skip
    parent = world.job(ended(world, **facts))
    first = retry(world, parent.id).job
    same = ("kind", "model", "input_hash", "name", "description", "labels", "external_url", "priority")
    same += ("abort_after_failed_rows",)
    assert {name: getattr(parent, name) for name in same} == {name: getattr(first, name) for name in same}
    world.store.jobs.cancel(world.tenant, first.id, None)
    given: dict[str, Any] = {"name": "", "labels": {"c": "d"}, "external_url": "https://b.test", "priority": 0}
    second = retry(world, parent.id, **given).job
    assert given == {name: getattr(second, name) for name in given}
    mine = JobFilter(labels={"c": "d"})
    assert [second.id] == [job.id for job in world.store.jobs.page(world.tenant, limit=9, wanted=mine)]


def test_the_key_goes_with_it_where_the_parent_still_holds_it(world: World) -> None:
    parent = ended(world, idempotency_key=KEY)
    made = retry(world, parent)
    assert (KEY, parent, parent) == (made.job.idempotency_key, made.job.retry_of, made.replaced)
    assert made.job.id == world.store.jobs.attach(world.tenant, KEY, None).job.id
    assert made.job.id == world.submit(ROWS, idempotency_key=KEY).job.id


def test_a_key_that_another_job_has_taken_stays_there(world: World) -> None:
    parent = ended(world, idempotency_key=KEY)
    other = world.submit(ROWS, idempotency_key=KEY, reuse=Reuse.never).job.id
    made = retry(world, parent)
    assert (None, None, None, parent) == (
        made.job.idempotency_key, made.job.retry_of, made.replaced, made.job.rows_from,
    )  # fmt: skip
    assert other == world.store.jobs.attach(world.tenant, KEY, None).job.id
    assert world.job(other).status is JobStatus.preparing


@pytest.mark.parametrize("key", [None, KEY])
def test_while_it_is_alive_the_same_call_finds_it(world: World, key: str | None) -> None:
    parent = ended(world, idempotency_key=key)
    first, second = retry(world, parent), retry(world, parent)
    assert (first.job.id, True, first.claim + 1) == (second.job.id, second.reused, second.claim)
    run_all(world)
    assert first.job.id != retry(world, parent).job.id, "it is over: the failed rows may run once more"


def test_a_repeated_call_gets_its_own_job_also_when_that_is_over(world: World) -> None:
    parent = ended(world)
    first = retry(world, parent, submission_id="call-1")
    run_all(world)
    again = retry(world, parent, submission_id="call-1")
    assert (first.job.id, True) == (again.job.id, again.reused)


@pytest.mark.parametrize("key", [None, KEY])
def test_twins_at_the_same_moment_get_one_job(world: World, key: str | None) -> None:
    parent = ended(world, idempotency_key=key)
    start = Barrier(8)

    def call(number: int) -> SubmitResult:
        start.wait()
        return retry(world, parent, submission_id=f"call-{number}")

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(call, range(8)))
    assert 1 == len({answer.job.id for answer in answers})
    assert 1 == sum(not answer.reused for answer in answers)
    assert 8 == len({answer.claim for answer in answers})


@pytest.mark.parametrize("number", range(10))
def test_a_retry_and_a_submit_of_its_key_at_the_same_moment_get_one_job(world: World, number: int) -> None:
    parent = ended(world, idempotency_key=KEY)
    new = world.a_job(ROWS, idempotency_key=KEY, reuse=Reuse.failed_rows, max_failed_rows=0)
    start = Barrier(8)

    def call(number: int) -> str:
        start.wait()
        return (world.store.jobs.submit(new) if number else retry(world, parent)).job.id

    with ThreadPoolExecutor(8) as threads:
        assert 1 == len(set(threads.map(call, range(8))))


def test_what_can_not_be_retried_says_why(world: World) -> None:
    alive = world.prepared(["good"])
    with pytest.raises(NotEnded, match=alive):
        retry(world, alive)
    world.run()
    with pytest.raises(NothingToRetry, match=alive):
        retry(world, alive)
    with pytest.raises(NotFound):
        retry(world, "job_of_nobody")
    world.store.tenants.ensure("another")
    with pytest.raises(NotFound):
        world.store.retries.retry(NewRetry(tenant_id="another", parent=alive), there)
    parent = ended(world)
    with pytest.raises(InputDeleted, match=parent):
        world.store.retries.retry(NewRetry(tenant_id=world.tenant, parent=parent), lambda _blob: False)


def test_rows_that_a_stopped_job_never_decided_run(world: World) -> None:
    """Undecided rows, and rows that were never read, are rows without a result."""
    with patch.object(planning, "window_rows", lambda _number: 24):
        parent = world.submit(60).job.id
        world.prepare_window()
        [lease] = world.claim(1)
        world.finish(lease)
        world.store.jobs.cancel(world.tenant, parent, None)
        assert 24 == world.job(parent).rows_total
    with patch.object(planning, "window_rows", lambda _number: 17):  # windows need not be the parent's
        made = retry(world, parent)
        ran = run_all(world)
    done = {row["index"] for row in world.results(parent) if row["status"] == "succeeded"}
    assert sorted(set(range(60)) - done) == ran
    job = world.job(made.job.id)
    assert (JobStatus.succeeded, 60, 60, len(done)) == (
        job.status, job.rows_total, job.rows_succeeded, job.rows_reused,
    )  # fmt: skip
    assert list(range(60)) == [row["index"] for row in world.results(made.job.id)]


def test_a_retry_can_be_retried(world: World) -> None:
    first = ended(world)
    second = retry(world, first).job.id
    run_all(world, echo)
    third = retry(world, second).job.id
    assert [1, 3] == run_all(world)
    assert (3, 3) == (world.job(second).rows_reused, world.job(third).rows_reused)
    assert 5 == world.job(third).rows_succeeded


def test_a_retry_of_one_that_was_stopped_early_finds_the_answers_of_the_job_before(world: World) -> None:
    """Stopped in its first window, a retry has not taken over what lies behind; its own retry does."""
    with patch.object(planning, "window_rows", lambda _number: 20):
        rows = ["fail" if number % 10 == 0 else f"row {number}" for number in range(60)]
        first = ended(world, rows)
        second = retry(world, first).job.id
        world.prepare_window()
        world.store.jobs.cancel(world.tenant, second, None)
        assert (20, 18) == (world.job(second).rows_read, world.job(second).rows_reused)
        third = retry(world, second).job.id
        assert [0, 10, 20, 30, 40, 50] == run_all(world)
    assert 54 == world.job(third).rows_reused


def test_a_retry_of_which_every_row_is_there_ends_with_its_last_window(world: World) -> None:
    parent = world.submit(40).job.id
    with patch.object(planning, "window_rows", lambda _number: 40):
        world.prepare_window()
    world.run()
    assert world.job(parent).status is not JobStatus.succeeded, "the reader does not know yet that it was the last"
    world.store.jobs.cancel(world.tenant, parent, None)
    made = retry(world, parent).job.id
    assert [] == run_all(world)
    assert (JobStatus.succeeded, 40, None) == (
        world.job(made).status, world.job(made).rows_reused, world.job(made).started_at,
    )  # fmt: skip


def test_files_of_the_parent_may_go_afterwards(world: World) -> None:
    parent = ended(world)
    made = retry(world, parent).job.id
    run_all(world)
    before = world.results(made)
    for file in world.store.chunks.files(parent, 0):
        world.blobs.delete(str(file.result_blob))
    assert before == world.results(made)


def test_rows_whose_result_is_gone_run_again(world: World) -> None:
    """The parent was deleted while its retry was being prepared: nothing is lost but the saving."""
    parent = ended(world)
    made = retry(world, parent).job.id
    for file in world.store.chunks.files(parent, 0):
        world.blobs.delete(str(file.result_blob))
    assert [0, 1, 2, 3, 5] == run_all(world)
    assert (5, 0) == (world.job(made).rows_succeeded, world.job(made).rows_reused)


def test_a_copy_is_cut_into_files_of_a_chunk_at_most(world: World) -> None:
    rows = ["fail", *[f"row {number}" for number in range(2_500)]]
    parent = ended(world, rows)
    with patch.object(planning, "window_rows", lambda _number: 4_000):
        made = retry(world, parent).job.id
        assert [0] == run_all(world)
    files = [file for file in world.store.chunks.files(made, 0) if file.input_blob == file.result_blob]
    assert 2_500 == sum(file.rows for file in files)
    assert max(file.rows for file in files) <= planning.CHUNK_ROWS_MAX
    assert len(files) <= 5


# A submit that asks for it --------------------------------------------------------------------------------------------


def again(world: World, rows: Any = ROWS, **facts: Any) -> SubmitResult:
    return world.submit(rows, idempotency_key=KEY, **{"reuse": Reuse.failed_rows, **facts})


@pytest.mark.parametrize(("allowed", "reused"), [(None, True), (3, True), (2, False), (0, False)])
def test_a_succeeded_job_answers_unless_too_many_of_its_rows_failed(
    world: World, allowed: int | None, reused: bool
) -> None:
    parent = ended(world, idempotency_key=KEY)
    assert len(FAILED) == world.job(parent).rows_failed
    result = again(world, max_failed_rows=allowed)
    assert reused is result.reused
    if not reused:
        assert (parent, parent, KEY) == (result.job.rows_from, result.job.retry_of, result.job.idempotency_key)
        assert [1, 3] == run_all(world)


def test_a_live_job_answers(world: World) -> None:
    first = world.submit(ROWS, idempotency_key=KEY)
    assert (first.job.id, True) == (again(world, max_failed_rows=0).job.id, True)


def test_a_job_that_was_stopped_is_gone_on_with(world: World) -> None:
    parent = world.prepared(24, idempotency_key=KEY)
    [lease] = world.claim(1)
    world.finish(lease)
    world.store.jobs.cancel(world.tenant, parent, None)
    result = again(world, 24)
    assert (False, parent) == (result.reused, result.job.rows_from)
    assert 24 - lease.rows == len(run_all(world))


@pytest.mark.parametrize(
    "other",
    [
        {"rows": ["good"]},
        {"model": "other"},
        {"spec": JobSpec(sampling={"seed": 1})},
    ],
)
def test_answers_of_other_inputs_or_another_model_are_not_taken_over(world: World, other: dict[str, Any]) -> None:
    parent = world.prepared(ROWS, idempotency_key=KEY)
    world.store.jobs.cancel(world.tenant, parent, None)
    assert again(world, **other).job.rows_from is None


def test_answers_of_the_same_bytes_in_another_format_are_not_taken_over(world: World) -> None:
    facts: dict[str, Any] = {"idempotency_key": KEY, "spec": JobSpec(prompt="{a}")}
    table = b"a,b\n1,2\n3,4\n"
    parent = world.store.jobs.submit(world.a_job_of(table, InputFormat.csv, **facts)).job.id
    world.store.jobs.cancel(world.tenant, parent, None)
    new = world.a_job_of(table, InputFormat.tsv, reuse=Reuse.failed_rows, **facts)
    assert world.store.jobs.submit(new).job.rows_from is None


def test_other_inputs_of_a_job_that_answers_are_refused_or_replace_it(world: World) -> None:
    parent = ended(world, idempotency_key=KEY)
    with pytest.raises(IdempotencyMismatch):
        again(world, ["good"], max_failed_rows=0)
    replacing = again(world, ["good"], max_failed_rows=0, on_mismatch=OnMismatch.replace)
    assert (parent, None) == (replacing.replaced, replacing.job.rows_from)
