import asyncio
import pickle
import time
from threading import Timer
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import Abort
from prefect.runtime import flow_run
from prefect.states import Cancelling
from prefect.task_runners import ThreadPoolTaskRunner

import milkrun as mr
from milkrun.local import EngineFile
from prefect_milkrun import (
    MilkrunCredentials,
    MilkrunResults,
    afetch_results,
    ainfer,
    asubmit_job,
    await_job,
    cancels_jobs,
    fetch_results,
    infer,
    submit_job,
    wait_job,
)

pytestmark = pytest.mark.usefixtures("harness")
WAIT = 120.0


def jobs_of(client: mr.Milkrun, flow_run_id: object) -> list[mr.Job]:
    return client.jobs(labels={"prefect_flow_run_id": str(flow_run_id)})


def artifacts_of(flow_run_id: str) -> dict[str, Any]:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted, limit=200)
    return {artifact.key.rsplit("-", 1)[1]: artifact for artifact in found if artifact.key}


def test_one_line_in_a_flow(credentials: MilkrunCredentials, client: mr.Milkrun) -> None:
    @flow
    def classify() -> tuple[str, MilkrunResults]:
        return flow_run.id, infer([{"t": "a"}, {"t": "b"}], prompt="Say {t}", credentials=credentials, timeout=WAIT)

    run_id, results = classify()
    frame = results.to_polars()
    assert [0, 1] == frame["index"].to_list()
    assert 2 == len(results.to_pandas())
    (job,) = jobs_of(client, run_id)
    assert job.id == results.job_id
    assert (job.external_url or "").endswith(f"/runs/flow-run/{run_id}")
    assert job.labels.items() >= {"orchestrator": "prefect", "prefect_flow": "classify"}.items()


def test_one_line_in_an_async_flow(credentials: MilkrunCredentials) -> None:
    @flow
    async def classify() -> list[mr.ResultRow]:
        results = await ainfer(["one", "two"], credentials=credentials, timeout=WAIT)
        return await results.ato_list()

    assert [0, 1] == [row.index for row in asyncio.run(classify())]


def test_the_page_of_a_run_shows_link_progress_summary_and_a_few_rows(credentials: MilkrunCredentials) -> None:
    secret = credentials.api_key.get_secret_value()  # type: ignore[union-attr]

    @flow
    def shown() -> tuple[str, MilkrunResults]:
        rows = [{"t": f"private {number} " + "x" * 300} for number in range(30)] + [{"t": "fail: no"}]
        results = infer(rows, prompt="{t}", system_prompt="a hidden prompt", credentials=credentials, timeout=WAIT)
        return flow_run.id, results

    run_id, results = shown()
    found = artifacts_of(run_id)
    assert {"link", "progress", "summary", "rows"} == set(found)
    assert 100.0 == found["progress"].data
    assert results.url in found["link"].data
    assert "invalid row" in found["summary"].data
    assert 10 == found["rows"].data.count('"index"')
    everything = "".join(str(artifact.data) for artifact in found.values())
    assert secret not in everything
    assert "a hidden prompt" not in everything
    assert "x" * 250 not in everything


def test_no_rows_are_shown_when_none_are_wished(credentials: MilkrunCredentials) -> None:
    @flow
    def hidden() -> str:
        infer(["one"], credentials=credentials, preview_rows=0, timeout=WAIT)
        return flow_run.id

    assert "rows" not in artifacts_of(hidden())


def test_results_survive_storage_without_the_key(credentials: MilkrunCredentials, monkeypatch: Any) -> None:
    @flow
    def classify() -> MilkrunResults:
        return infer(["one"], credentials=credentials, timeout=WAIT)

    results = classify()
    stored = pickle.dumps(results)
    assert credentials.api_key.get_secret_value().encode() not in stored  # type: ignore[union-attr]
    monkeypatch.setenv("MILKRUN_API_KEY", credentials.api_key.get_secret_value())  # type: ignore[union-attr]
    restored = pickle.loads(stored)
    assert results.model_dump() == restored.model_dump()
    assert 1 == len(restored.to_list())


def test_results_of_a_named_block_read_with_it(credentials: MilkrunCredentials) -> None:
    credentials.save("named", overwrite=True)

    @flow
    def classify() -> MilkrunResults:
        return infer(["one"], credentials="named", timeout=WAIT)

    restored = pickle.loads(pickle.dumps(classify()))
    assert "named" == restored.block_name
    assert 1 == len(restored.to_list())


def test_bad_rows_are_data_until_the_flow_says_how_many_are_too_many(credentials: MilkrunCredentials) -> None:
    @flow
    def classify(allowed: int | None) -> MilkrunResults:
        return infer(["fail: no", "fine"], credentials=credentials, max_failed_rows=allowed, timeout=WAIT)

    assert ["invalid_row", None] == [row.error and row.error.code for row in classify(None).rows()]
    with pytest.raises(mr.TooManyRowsFailed):
        classify(0)


def test_a_retried_flow_finds_its_job(credentials: MilkrunCredentials, client: mr.Milkrun) -> None:
    seen: list[str] = []

    @flow(retries=2)
    def stumbles() -> str:
        seen.append(infer(["one"], credentials=credentials, timeout=WAIT).job_id)
        if len(seen) < 3:
            raise ConnectionError("after the job")
        return flow_run.id

    found = [job.id for job in jobs_of(client, stumbles())]
    assert [found[0]] * 3 == seen
    assert 1 == len(found)


def test_a_retried_task_attaches(credentials: MilkrunCredentials, client: mr.Milkrun) -> None:
    seen: list[str] = []

    @task(retries=2)
    def stumbles() -> str:
        seen.append(submit_job.fn(["slow:1 x"], credentials=credentials).job.id)
        if len(seen) < 3:
            raise ConnectionError("the worker died behind the submit")
        return wait_job.fn(seen[0], credentials=credentials, timeout=WAIT).id

    @flow
    def outer() -> str:
        stumbles()
        return flow_run.id

    found = [job.id for job in jobs_of(client, outer())]
    assert [found[0]] * 3 == seen
    assert 1 == len(found)


def test_changed_inputs_replace_the_job_of_the_try_before(credentials: MilkrunCredentials, client: mr.Milkrun) -> None:
    prompts = ["slow:30 first", "second"]

    @flow(retries=1)
    def changes() -> str:
        submitted = submit_job([prompts.pop(0)], credentials=credentials, call_key="it")
        if prompts:
            raise ConnectionError("again, with another prompt")
        wait_job(submitted.job.id, credentials=credentials, timeout=WAIT)
        return flow_run.id

    statuses = [job.status.value for job in jobs_of(client, changes())]
    assert ["cancelled", "succeeded"] == sorted(statuses)


def test_a_flow_that_is_retried_after_its_job_ended_badly_runs_it_again(
    credentials: MilkrunCredentials, client: mr.Milkrun
) -> None:
    seen: list[str] = []

    @flow(retries=1)
    def unlucky() -> str:
        submitted = submit_job(["slow:2 x"], credentials=credentials, call_key="it")
        seen.append(submitted.job.id)
        if len(seen) == 1:
            client.cancel(submitted.job.id)
        wait_job(submitted.job.id, credentials=credentials, timeout=WAIT)
        fetch_results(submitted.job.id, credentials=credentials)
        return flow_run.id

    unlucky()
    assert 2 == len(set(seen))


@pytest.mark.parametrize("retried", ["flow", "task"])
def test_a_retry_after_too_many_failed_rows_runs_them_alone(
    credentials: MilkrunCredentials, client: mr.Milkrun, retried: str
) -> None:
    """The answers that are there are taken over; where enough of the rows are good, nothing runs."""
    options: Any = {"credentials": credentials, "timeout": WAIT}
    seen: list[mr.Job] = []

    def once() -> None:
        try:
            seen.append(client.job(infer(["fail: no", "fine"], **options, max_failed_rows=len(seen) // 2).job_id))
        except mr.TooManyRowsFailed as error:
            seen.append(error.job)
            raise

    step = task(retries=2)(once) if retried == "task" else once

    @flow(retries=0 if retried == "task" else 2)
    def strict() -> None:
        step()

    strict()
    first, second, third = seen
    assert (first.id, 1, 1) == (second.rows_from, second.rows_reused, second.rows_failed)
    assert second.id == third.id


def test_a_job_that_ended_badly_is_not_run_again_in_the_same_try(
    credentials: MilkrunCredentials, client: mr.Milkrun
) -> None:
    @flow
    def stubborn() -> list[str]:
        first = submit_job.fn(["slow:30 x"], credentials=credentials, call_key="it")
        client.cancel(first.job.id)
        # A resumed run whose result storage was lost asks again.
        return [first.job.id, submit_job.fn(["slow:30 x"], credentials=credentials, call_key="it").job.id]

    first, second = stubborn()
    assert first == second


def test_in_a_task_it_waits_in_place(credentials: MilkrunCredentials) -> None:
    @task
    def inside() -> MilkrunResults:
        return infer(["one"], credentials=credentials, defer="suspend", timeout=WAIT)

    @flow
    def outer() -> MilkrunResults:
        return inside()

    assert 1 == outer().rows_succeeded


def test_in_a_subflow_it_waits_in_place(credentials: MilkrunCredentials) -> None:
    @flow
    def inside() -> MilkrunResults:
        return infer(["one"], credentials=credentials, timeout=WAIT)

    @flow
    def outer() -> MilkrunResults:
        return inside()

    assert 1 == outer().rows_succeeded


def test_a_flow_that_gives_up_stops_its_job(credentials: MilkrunCredentials, client: mr.Milkrun) -> None:
    @flow
    def impatient() -> None:
        infer(["slow:60 x"], credentials=credentials, timeout=1, name="impatient")

    with pytest.raises(mr.WaitTimeout) as caught:
        impatient()
    assert mr.JobStatus.cancelled == client.job(caught.value.job.id).status


def test_the_hook_stops_the_jobs_of_its_run(credentials: MilkrunCredentials, client: mr.Milkrun) -> None:
    stop = cancels_jobs(credentials)

    @flow(on_failure=[stop])
    def fails() -> None:
        submit_job(["slow:60 x"], credentials=credentials, name="left behind")
        raise ValueError("something else went wrong")

    with pytest.raises(ValueError, match="something else"):
        fails()
    (job,) = [job for job in client.jobs() if job.name == "left behind"]
    assert mr.JobStatus.cancelled == job.status


def test_the_hook_is_called_as_runners_call_it(credentials: MilkrunCredentials, client: mr.Milkrun) -> None:
    @flow
    def leaves() -> str:
        submit_job(["slow:60 x"], credentials=credentials)
        return flow_run.id

    run_id = leaves()
    with get_client(sync_client=True) as server:
        run = server.read_flow_run(UUID(run_id))
    cancels_jobs(credentials)(flow=leaves, flow_run=run, state=run.state)  # by name
    assert [mr.JobStatus.cancelled] == [job.status for job in jobs_of(client, run_id)]


def test_a_run_whose_job_is_cancelled_with_it_ends_as_cancelled(
    credentials: MilkrunCredentials, client: mr.Milkrun
) -> None:
    """Its worker may not have heard of the click when the resumer has stopped the job."""
    seen: list[UUID] = []

    @flow
    def clicked() -> None:
        seen.append(UUID(flow_run.id))
        submitted = submit_job(["slow:60 x"], credentials=credentials, call_key="it")
        with get_client(sync_client=True) as server:
            server.set_flow_run_state(seen[0], Cancelling())
        Timer(1, client.cancel, (submitted.job.id,)).start()
        infer(["slow:60 x"], credentials=credentials, call_key="it", timeout=WAIT)

    with pytest.raises(Abort):
        clicked()
    with get_client(sync_client=True) as server:
        assert "Cancelled" == server.read_flow_run(seen[0]).state_name


def test_the_tasks_one_by_one_awaiting(credentials: MilkrunCredentials) -> None:
    @flow
    async def three() -> MilkrunResults:
        submitted = await asubmit_job(["one"], credentials=credentials)
        job = await await_job(submitted.job.id, credentials=credentials, timeout=WAIT)
        return await afetch_results(job.id, credentials=credentials)

    assert 1 == asyncio.run(three()).rows_succeeded


def test_an_engine_that_is_away_is_no_reason_to_try_for_ever(credentials: MilkrunCredentials) -> None:
    wrong = MilkrunCredentials.model_validate({"base_url": str(credentials.base_url), "api_key": "mk_wrong"})

    @flow
    def refused() -> None:
        submit_job(["one"], credentials=wrong)

    began = time.monotonic()
    with pytest.raises(mr.AuthenticationError):
        refused()
    assert time.monotonic() - began < 20


def connections(engine: EngineFile) -> int:
    """How many connections this process has to the engine."""
    port = urlsplit(engine.url).port
    found = psutil.Process().net_connections(kind="tcp")
    return sum(1 for each in found if each.raddr and each.raddr.port == port and each.status == "ESTABLISHED")


def test_a_hundred_tasks_wait_over_one_connection(
    engine: EngineFile, credentials: MilkrunCredentials, client: mr.Milkrun
) -> None:
    counted: list[int] = []

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=100))
    def crowd() -> list[str]:
        job_ids = [client.infer([f"slow:600 {number}"]) for number in range(100)]
        before = connections(engine)
        waits = [wait_job.submit(job_id, credentials=credentials, timeout=WAIT) for job_id in job_ids]
        deadline = time.monotonic() + WAIT
        while len(credentials._watcher()._waits) < 100:
            assert time.monotonic() < deadline, "a hundred tasks did not begin to wait"
            time.sleep(0.2)
        counted.append(connections(engine) - before)
        for job_id in job_ids:
            client.cancel(job_id)
        return [wait.result().status.value for wait in waits]

    assert ["cancelled"] * 100 == crowd()
    assert counted[0] <= 1


def test_a_hundred_awaiting_tasks_do_the_same(
    engine: EngineFile, credentials: MilkrunCredentials, client: mr.Milkrun
) -> None:
    @flow
    async def crowd() -> list[str]:
        job_ids = [client.infer([f"slow:2 {number}"]) for number in range(100)]
        jobs = await asyncio.gather(*(await_job(each, credentials=credentials, timeout=WAIT) for each in job_ids))
        return [job.status.value for job in jobs]

    assert ["succeeded"] * 100 == asyncio.run(crowd())


def test_the_engine_is_asked_to_resume_the_run(credentials: MilkrunCredentials) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

    from prefect_milkrun._run import Here

    @flow
    def asks() -> tuple[str, dict[str, Any]]:
        with temporary_settings({PREFECT_API_AUTH_STRING: "user:pass"}):
            return flow_run.id, Here.now().callback("http://prefect:4200/api/") or {}

    run_id, callback = asks()
    assert f"http://prefect:4200/api/flow_runs/{run_id}/resume" == callback["url"]
    assert {"Authorization": "Basic dXNlcjpwYXNz"} == callback["headers"]


def test_where_the_engine_calls_nobody_the_job_is_submitted_all_the_same(credentials: MilkrunCredentials) -> None:
    never_called = credentials.model_copy(update={"prefect_api_url": "http://169.254.0.1/api"})

    @flow
    def asks() -> mr.Submitted:
        return submit_job(iter(["one"]), credentials=never_called, call_key="it", resume=True)

    job = asks().job
    assert "prefect_callback" not in job.labels
    assert {"orchestrator": "prefect"}.items() <= job.labels.items()
