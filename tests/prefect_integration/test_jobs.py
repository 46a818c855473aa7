import pytest
from prefect import flow

import milkrun as mr
from prefect_milkrun import MilkrunCredentials, MilkrunJob


def a_job(credentials: MilkrunCredentials, **fields: object) -> MilkrunJob:
    return MilkrunJob.model_validate({"credentials": credentials, "prompt": "Say {text}", **fields})


ROWS = [{"text": "one"}, {"text": "two"}]


def test_trigger_wait_fetch(credentials: MilkrunCredentials) -> None:
    run = a_job(credentials, labels={"team": "reviews"}).trigger(ROWS, name="by block")
    ended = run.wait_for_completion(timeout=60)
    results = run.fetch_result()
    assert (mr.JobStatus.succeeded, "by block") == (ended.status, ended.name)
    assert ended.labels.items() >= {"team": "reviews", "orchestrator": "prefect"}.items()
    assert [0, 1] == [row.index for row in results.rows()]
    assert (2, 0) == (results.rows_succeeded, results.rows_failed)


@pytest.mark.anyio
async def test_the_same_awaiting(credentials: MilkrunCredentials) -> None:
    run = await a_job(credentials).atrigger(ROWS)
    assert (await run.await_for_completion(timeout=60)).is_terminal
    assert 2 == len(await (await run.afetch_result()).ato_list())


def test_too_many_failed_rows_are_the_blocks_verdict(credentials: MilkrunCredentials) -> None:
    run = a_job(credentials, prompt="{text}", max_failed_rows=0).trigger([{"text": "fail: no"}, {"text": "fine"}])
    run.wait_for_completion(timeout=60)
    with pytest.raises(mr.TooManyRowsFailed):
        run.fetch_result()


def test_a_wait_that_takes_too_long_leaves_the_job_alone(credentials: MilkrunCredentials) -> None:
    run = a_job(credentials, prompt="{text}").trigger([{"text": "slow:30 x"}])
    with pytest.raises(mr.WaitTimeout) as caught:
        run.wait_for_completion(timeout=0.2)
    assert not caught.value.job.is_terminal
    assert mr.JobStatus.cancelled == run.cancel().status


@pytest.mark.usefixtures("harness")
def test_two_triggers_of_a_flow_are_two_jobs_and_a_repeated_flow_finds_both(credentials: MilkrunCredentials) -> None:
    tries: list[list[str]] = []

    @flow(retries=1)
    def twice() -> None:
        block = a_job(credentials)
        tries.append([block.trigger(ROWS).job_id, block.trigger(ROWS).job_id])
        if len(tries) == 1:
            raise ConnectionError("once")

    twice()
    assert tries[0] == tries[1]
    assert 2 == len(set(tries[0]))
