"""What the resumer stops, and when: flow runs in each of the states that may mean that nobody comes back."""

from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Running

import milkrun as mr
from prefect_milkrun import MilkrunCredentials, resumer

pytestmark = pytest.mark.usefixtures("harness")


@flow
def somebody() -> None:
    """Whose runs are made, not run."""


def a_job_of_a_run(client: mr.Milkrun, state: State) -> mr.Job:
    with get_client(sync_client=True) as server:
        run_id = server.create_flow_run(somebody, name=str(uuid4()), state=state).id
    labels = {"orchestrator": "prefect", "prefect_flow_run_id": str(run_id)}
    return client.submit(["slow:600 x"], labels=labels).job


def looks(credentials: MilkrunCredentials, client: mr.Milkrun, grace_seconds: float) -> None:
    with get_client(sync_client=True) as server:
        resumer.Resumer(credentials, grace_seconds=grace_seconds).look(client, server)


@pytest.mark.parametrize("state", [Failed(), Crashed()], ids=lambda state: state.name)
def test_a_run_that_may_still_be_minded_keeps_its_job_for_a_while(
    state: State, credentials: MilkrunCredentials, client: mr.Milkrun
) -> None:
    job = a_job_of_a_run(client, state)
    looks(credentials, client, grace_seconds=60)
    assert not client.job(job.id).is_terminal
    looks(credentials, client, grace_seconds=0)
    assert mr.JobStatus.cancelled == client.job(job.id).status


def test_a_cancelled_run_loses_its_job_at_once(credentials: MilkrunCredentials, client: mr.Milkrun) -> None:
    job = a_job_of_a_run(client, Cancelled())
    looks(credentials, client, grace_seconds=60)
    assert mr.JobStatus.cancelled == client.job(job.id).status


def test_a_run_that_is_being_cancelled_is_its_workers_first(
    credentials: MilkrunCredentials, client: mr.Milkrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job_of_a_run(client, Cancelling())
    looks(credentials, client, grace_seconds=60)
    assert not client.job(job.id).is_terminal
    monkeypatch.setattr(resumer, "_MINDED_SECONDS", 0.0)
    looks(credentials, client, grace_seconds=60)
    assert mr.JobStatus.cancelled == client.job(job.id).status


@pytest.mark.parametrize("state", [Running(), Completed()], ids=lambda state: state.name)
def test_the_jobs_of_other_runs_go_on(state: State, credentials: MilkrunCredentials, client: mr.Milkrun) -> None:
    job = a_job_of_a_run(client, state)
    looks(credentials, client, grace_seconds=0)
    assert not client.job(job.id).is_terminal
    client.cancel(job.id)
