"""
A real Prefect server, a real runner that serves flows, and what becomes of their processes.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts.prefect import Prefect, until
from prefect.settings import PREFECT_API_URL, temporary_settings

import milkrun as mr
from milkrun.local import EngineFile
from prefect_milkrun import MilkrunCredentials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory, engine: EngineFile) -> Iterator[Prefect]:
    """A server with two blocks, and the runner of `deployed.py`."""
    with Prefect(tmp_path_factory.mktemp("prefect")) as prefect:
        with temporary_settings({PREFECT_API_URL: prefect.api_url}):
            block = MilkrunCredentials.model_validate({"base_url": engine.url, "api_key": engine.api_key})
            block.save("engine", overwrite=True)
            uncalled = block.model_copy(update={"prefect_api_url": "http://127.0.0.1:9/api"})  # nobody listens there
            uncalled.save("uncalled", overwrite=True)
        prefect.serve(Path(__file__).with_name("deployed.py"))
        yield prefect


@pytest.fixture(scope="module")
def resumer(prefect: Prefect) -> None:
    """From the first test that names it on."""
    prefect.resume("--block", "engine", "--look-seconds", "2")


def jobs(client: mr.Milkrun, run_id: str) -> list[mr.Job]:
    return client.jobs(labels={"prefect_flow_run_id": run_id})


def the_job(client: mr.Milkrun, run_id: str) -> mr.Job:
    (job,) = until(lambda: jobs(client, run_id), "the submit")
    return job


def progress(prefect: Prefect, run_id: str) -> float:
    return next(artifact["data"] for artifact in prefect.artifacts(run_id) if artifact["type"] == "progress")


def leaves_and_completes(prefect: Prefect, client: mr.Milkrun, run_id: str, left_as: str) -> list[str]:
    """The run's process ends while its job runs, and later the run completes with that one job; its states."""
    prefect.await_state(run_id, left_as)
    until(lambda: not prefect.flow_processes(), "the process's end")
    assert not the_job(client, run_id).is_terminal, "the job was too short for this machine"
    prefect.await_state(run_id, "Completed")
    assert mr.JobStatus.succeeded == the_job(client, run_id).status
    tags = prefect.run(run_id)["tags"]
    assert not [tag for tag in tags if tag.startswith("milkrun")], "it waits for no job any more"
    return prefect.state_names(run_id)


def test_a_suspended_run_holds_no_process_and_the_engine_resumes_it(prefect: Prefect, client: mr.Milkrun) -> None:
    run_id = prefect.trigger("waits/waits", rows=["quick", "slow:40 last"])
    assert "Resuming" in leaves_and_completes(prefect, client, run_id, "Suspended")
    assert 100.0 == progress(prefect, run_id)


def test_a_rescheduled_run_needs_nobody(prefect: Prefect, client: mr.Milkrun) -> None:
    run_id = prefect.trigger("waits/waits", rows=["slow:40 x"], defer="reschedule", reschedule_seconds=20)
    states = leaves_and_completes(prefect, client, run_id, "AwaitingMilkrun")
    assert not {"Crashed", "Failed", "Suspended"} & set(states)


def test_a_callback_that_comes_before_the_run_is_suspended_still_resumes_it(
    prefect: Prefect, client: mr.Milkrun
) -> None:
    run_id = prefect.trigger("waits-late/waits-late", rows=["slow:4 x"])
    prefect.await_state(run_id, "Completed")
    assert {"Suspended", "Resuming"} <= set(prefect.state_names(run_id))


def test_two_jobs_of_an_async_body(prefect: Prefect, client: mr.Milkrun) -> None:
    run_id = prefect.trigger("awaits-twice/awaits-twice", rows=["slow:10 a", "b"])
    prefect.await_state(run_id, "Completed")
    assert 2 == len(jobs(client, run_id))
    assert "Suspended" in prefect.state_names(run_id)


@pytest.mark.usefixtures("resumer")
def test_the_resumer_alone_resumes_a_run_and_moves_its_progress(prefect: Prefect, client: mr.Milkrun) -> None:
    run_id = prefect.trigger("waits/waits", rows=["slow:40 x"], credentials="uncalled", defer="suspend")
    assert "Resuming" in leaves_and_completes(prefect, client, run_id, "Suspended")


@pytest.mark.usefixtures("resumer")
def test_the_resumer_finds_a_run_that_was_suspended_behind_its_jobs_end(prefect: Prefect, client: mr.Milkrun) -> None:
    run_id = prefect.trigger("waits-late/waits-late", rows=["slow:4 x"], credentials="uncalled")
    prefect.await_state(run_id, "Completed")
    assert {"Suspended", "Resuming"} <= set(prefect.state_names(run_id))


@pytest.mark.usefixtures("resumer")
def test_a_run_cancelled_while_it_is_suspended_takes_its_job_along(prefect: Prefect, client: mr.Milkrun) -> None:
    run_id = prefect.trigger("waits/waits", rows=["slow:300 x"])
    prefect.await_state(run_id, "Suspended")
    job = the_job(client, run_id)
    prefect.set_state(run_id, "CANCELLING")
    until(lambda: client.job(job.id).status is mr.JobStatus.cancelled, "the job's end", 10)
    assert "Cancelled" == prefect.run(run_id)["state_name"]
