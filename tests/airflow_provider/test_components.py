"""
Whole stories on a real scheduler, DAG processor, API server, triggerer and LocalExecutor.

One live job a task, nothing leaked, no healthy job cancelled: whatever dies, and whatever a user clicks.
"""

import shutil
import time
from pathlib import Path
from uuid import uuid4

import pytest
from airflow_provider.stand_ins import connection
from hosts.airflow import Components, until

import milkrun as mr

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def airflow(engine, tmp_path_factory):
    """Airflow with the DAGs of `story_dags.py`."""
    airflow = Components(tmp_path_factory.mktemp("airflow"), {"AIRFLOW_CONN_MILKRUN_DEFAULT": connection(engine)})
    shutil.copy(Path(__file__).with_name("story_dags.py"), airflow.dags)
    (airflow.dags / "prompt.txt").write_text("slow:300 {text}")
    with airflow:
        yield airflow


@pytest.fixture
def run(client):
    """A run's id; whatever jobs it leaves are cancelled."""
    name = f"run-{uuid4().hex[:8]}"
    yield name
    client.cancel_labelled({"run_id": name})


@pytest.fixture
def jobs(client, run):
    """Asks for the run's jobs, newest first."""
    return lambda: client.jobs(labels={"run_id": run})


def test_a_task_defers_and_collects(airflow, jobs, run):
    """Deferred while the job runs; then manifest, results, link and log lines."""
    airflow.trigger("short", run)
    airflow.await_state("short", run, "success")
    (job,) = jobs()
    manifest = airflow.returned("short", run)

    assert (manifest["job_id"], manifest["rows_succeeded"], manifest["rows_failed"]) == (job.id, 2, 1)
    assert len((airflow.dags / "out.jsonl").read_text().splitlines()) == 3
    assert airflow.links("short", run) == {"Milkrun job": job.url}
    log = airflow.log("short", run)
    assert "submitted" in log
    assert "Pausing task as DEFERRED" in log
    assert "rows done" in log, "the trigger's progress is in the task's own log"


@pytest.mark.parametrize(("dag", "state"), [("long", "deferred"), ("blocking", "running")])
def test_marked_failed_cancels_the_job(airflow, jobs, run, dag, state):
    """Nobody will collect its results."""
    airflow.trigger(dag, run)
    airflow.await_state(dag, run, state)
    if state == "deferred":
        _await_trigger(airflow, dag, run)
    until(jobs, 60, "the submit", airflow.logs)
    airflow.mark(dag, run, "failed")

    until(lambda: jobs()[0].is_terminal, 90, "the job is cancelled", airflow.logs)
    assert [mr.JobStatus.cancelled] == [job.status for job in jobs()]


def test_a_deleted_dag_takes_its_jobs_along(airflow, jobs, run):
    """Nothing of the task is left that could collect."""
    airflow.trigger("deleted", run)
    airflow.await_state("deleted", run, "deferred")
    _await_trigger(airflow, "deleted", run)
    airflow.call("DELETE", "/dags/deleted")

    until(lambda: jobs()[0].is_terminal, 90, "the job is cancelled", airflow.logs)
    assert [mr.JobStatus.cancelled] == [job.status for job in jobs()]


@pytest.mark.parametrize("dag", ["long", "held_back"])
def test_cleared_while_deferred_keeps_the_job(airflow, client, jobs, run, dag):
    """The new attempt waits for the same job, and the old one's trigger does not stop it, however late it comes."""
    airflow.trigger(dag, run)
    airflow.await_state(dag, run, "deferred")
    _await_trigger(airflow, dag, run)
    (before,) = jobs()
    airflow.clear(dag, run)
    airflow.await_state(dag, run, "deferred", at_try=2)
    _await_trigger(airflow, dag, run)
    time.sleep(3)  # a cancel would have come by now
    (after,) = jobs()

    assert before.id == after.id
    assert not after.is_terminal
    client.cancel(after.id)
    airflow.await_state(dag, run, "failed", at_try=2)


def test_cleared_with_another_prompt_replaces_the_job(airflow, jobs, run):
    """The old job is stopped, and the task waits for the new one."""
    airflow.trigger("changing", run)
    airflow.await_state("changing", run, "deferred")
    _await_trigger(airflow, "changing", run)
    (old,) = jobs()
    (airflow.dags / "prompt.txt").write_text("now: {text}")
    airflow.clear("changing", run)
    airflow.await_state("changing", run, "success", at_try=2)
    new, replaced = jobs()

    assert (replaced.id, replaced.status) == (old.id, mr.JobStatus.cancelled)
    assert (new.id, new.status) == (airflow.returned("changing", run)["job_id"], mr.JobStatus.succeeded)


@pytest.mark.parametrize("dag", ["limited", "limited_in_worker", "impatient"])
def test_the_time_limit_cancels_the_job(airflow, jobs, run, dag):
    """Airflow's own: it resumes the task only to fail it, and asks neither trigger nor `execute_complete`. And ours."""
    airflow.trigger(dag, run)
    airflow.await_state(dag, run, "failed")

    assert [mr.JobStatus.cancelled] == [job.status for job in jobs()]


def test_a_killed_triggerer_is_replaced(airflow, jobs, run):
    """The trigger holds nothing that is not stored."""
    airflow.trigger("medium", run)
    airflow.await_state("medium", run, "deferred")
    _await_trigger(airflow, "medium", run)
    airflow.kill("triggerer")
    time.sleep(2)
    airflow.start("triggerer")
    airflow.await_state("medium", run, "success", seconds=180)

    assert [mr.JobStatus.succeeded] == [job.status for job in jobs()]


@pytest.mark.parametrize("dag", ["dies_before", "dies_after"])
def test_a_worker_killed_at_the_submit_makes_no_second_job(airflow, jobs, run, dag):
    """Where the engine has accepted, Airflow never heard of the job; the engine knows it by the task's key."""
    airflow.trigger(dag, run)
    ended = airflow.await_state(dag, run, "success", "failed", at_try=2, seconds=180)

    assert ended["state"] == "success"
    assert [mr.JobStatus.succeeded] == [job.status for job in jobs()]


def _await_trigger(airflow, dag, run):
    """Wait until a triggerer has taken the task's trigger up."""

    def taken():
        trigger = airflow.task(dag, run)["trigger"]
        return trigger is not None and trigger["triggerer_id"] is not None

    until(taken, 60, "a triggerer has the trigger", airflow.logs)
