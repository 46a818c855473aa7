"""
The trigger alone: stored, rebuilt, run, killed.
"""

import asyncio
import threading
import time
from types import SimpleNamespace
from uuid import uuid4

import pytest
from airflow.sdk.execution_time import task_runner
from airflow.sdk.module_loading import import_string
from airflow_provider.stand_ins import Attempt

import milkrun as mr
from airflow_provider_milkrun import _kills
from airflow_provider_milkrun.events import JobEvent, Reason
from airflow_provider_milkrun.hooks import MilkrunHook
from airflow_provider_milkrun.triggers import MilkrunJobTrigger, ProgressLog


def first_event(trigger):
    """Store the trigger, rebuild it and run it to its first event, as a triggerer does."""
    path, arguments = trigger.serialize()

    async def run():
        async for event in import_string(path)(**arguments).run():
            return event.payload
        return None

    return JobEvent.read(asyncio.run(run()))


def test_arguments_of_the_first_version_are_understood_for_ever():
    """A trigger that was stored before an upgrade runs after it."""
    trigger = MilkrunJobTrigger(job_id="job_1", conn_id="milkrun_default")

    path, arguments = trigger.serialize()
    assert path == "airflow_provider_milkrun.triggers.MilkrunJobTrigger"
    assert arguments == {
        "job_id": "job_1",
        "conn_id": "milkrun_default",
        "claim": None,
        "deadline": None,
        "cancel_on_kill": True,
        "not_before": None,
    }


def test_it_wakes_at_the_end(engine, client):
    """Also where the job ended before the trigger began."""
    job_id = client.infer(["slow:0.5 hello"])

    assert Reason.ended is first_event(MilkrunJobTrigger(job_id=job_id, conn_id="milkrun_default")).reason
    assert Reason.ended is first_event(MilkrunJobTrigger(job_id=job_id, conn_id="milkrun_default")).reason


def test_it_wakes_at_the_deadline(engine, client):
    """The job goes on; what becomes of it is the task's to say."""
    job_id = client.infer(["slow:30 hello"])
    trigger = MilkrunJobTrigger(job_id=job_id, conn_id="milkrun_default", deadline=time.time() + 0.5)

    assert Reason.timeout is first_event(trigger).reason
    assert not client.job(job_id).is_terminal
    client.cancel(job_id)


def test_it_does_not_fire_before_airflow_can_bear_it(engine, client):
    """A task that is woken before the scheduler saw it defer would be failed."""
    job_id = client.infer(["hello"])
    client.wait(job_id)
    not_before = time.time() + 2
    event = first_event(MilkrunJobTrigger(job_id=job_id, conn_id="milkrun_default", not_before=not_before))

    assert Reason.ended is event.reason
    assert time.time() >= not_before


def test_it_is_unsure_of_a_job_that_is_not_there(engine):
    """The task finds out, with its retries behind it."""
    event = first_event(MilkrunJobTrigger(job_id="job_nowhere", conn_id="milkrun_default"))

    assert Reason.unsure is event.reason
    assert "NotFound" in event.message


def test_it_is_unsure_without_its_connection(engine):
    """A connection that is missing for a moment fails no task."""
    assert Reason.unsure is first_event(MilkrunJobTrigger(job_id="job_1", conn_id="elsewhere")).reason


def test_many_wait_in_one_loop(engine, client, monkeypatch):
    """All through the process's one watcher: one poll at a time, however many they are."""
    polls = []
    watcher = MilkrunHook().engine().watcher()
    ask = watcher._ask
    monkeypatch.setattr(watcher, "_ask", lambda cursor: polls.append(threading.get_ident()) or ask(cursor))
    job_ids = [client.infer([f"slow:1 {number}"]) for number in range(20)]

    async def run(job_id):
        async for event in MilkrunJobTrigger(job_id=job_id, conn_id="milkrun_default").run():
            return event.payload["job_id"]
        return None

    async def together():
        return await asyncio.gather(*map(run, job_ids))

    assert job_ids == asyncio.run(together())
    assert 1 == len(set(polls))


@pytest.mark.parametrize("state", ["deferred", "running", "queued", "scheduled", "up_for_retry", "restarting", None])
@pytest.mark.parametrize("map_index", [-1, 3])
def test_a_kill_of_a_living_task_cancels_nothing(engine, client, monkeypatch, state, map_index):
    """A cleared task (it has no state), and one that moved to another triggerer, still wants its job."""
    assert not _cancelled_by_kill(client, monkeypatch, state, map_index)


@pytest.mark.parametrize("state", ["failed", "success", "skipped", "removed", "upstream_failed", "gone"])
@pytest.mark.parametrize("map_index", [-1, 3])
def test_a_kill_of_an_ended_task_cancels_its_job(engine, client, monkeypatch, state, map_index):
    """Nobody will collect the results; `gone` with its run or its DAG, least of all."""
    assert _cancelled_by_kill(client, monkeypatch, state, map_index)


def test_a_stale_claim_cancels_nothing_of_a_living_attempt(engine, client, monkeypatch):
    """The job belongs to the newer attempt, which has begun since the task was seen to have ended."""
    assert not _cancelled_by_kill(client, monkeypatch, "failed", -1, attempts=2, then="running")


def test_a_kill_of_an_ended_task_cancels_the_newest_attempts_job(engine, client, monkeypatch):
    """A triggerer may keep an older attempt's trigger for the newest one, whose number it has."""
    assert _cancelled_by_kill(client, monkeypatch, "failed", -1, attempts=2)


def test_a_kill_that_is_cut_off_goes_on(engine, client, monkeypatch):
    """Airflow cancels the trigger again while `on_kill` still waits for a slow answer."""
    job = client.submit(["slow:20 hello"]).job

    async def slow(message):
        await asyncio.sleep(0.5)
        return SimpleNamespace(task_states={message.run_ids[0]: {"t": "failed"}})

    async def killed():
        trigger = MilkrunJobTrigger(job_id=job.id, conn_id="milkrun_default")
        trigger.task_instance = Attempt("r")
        kill = asyncio.ensure_future(trigger.on_kill())
        await asyncio.sleep(0.1)
        kill.cancel()
        await asyncio.gather(*_kills.RUNNING)
        return kill.cancelled()

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=slow), raising=False)

    assert asyncio.run(killed())
    assert client.job(job.id).status is mr.JobStatus.cancelled


def test_a_kill_can_be_told_to_leave_the_job(engine, client, monkeypatch):
    """A sensor's trigger, for one."""
    assert not _cancelled_by_kill(client, monkeypatch, "failed", -1, cancel_on_kill=False)


def _cancelled_by_kill(client, monkeypatch, state, map_index, *, attempts=1, then=None, **options):
    ti = Attempt(f"run {uuid4()}", map_index=map_index)
    key = MilkrunHook().engine().key_of(ti)
    submits = [client.submit(["slow:20 hello"], idempotency_key=key) for _ in range(attempts)]
    job, claim = submits[0].job, submits[0].claim
    states = [state]

    async def asend(message):
        assert (message.dag_id, message.task_ids, message.map_index) == ("d", ["t"], map_index)
        seen = states.pop(0) if states else then or state
        found = {} if seen == "gone" else {"t" if map_index < 0 else f"t_{map_index}": seen}
        return SimpleNamespace(task_states={message.run_ids[0]: found})

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
    trigger = MilkrunJobTrigger(job_id=job.id, conn_id="milkrun_default", claim=claim, **options)
    trigger.task_instance = ti
    asyncio.run(trigger.on_kill())

    ended = client.job(job.id).is_terminal
    client.cancel(job.id)
    return ended


def test_progress_is_told_sparingly(engine, client):
    """A line when counts moved, and not at every one of them."""
    lines = []
    log = ProgressLog(SimpleNamespace(info=lambda *facts: lines.append(facts)))
    job = client.submit(["slow:5 hello"]).job
    for done in range(3):
        log(job.model_copy(update={"rows_done": done}))
    client.cancel(job.id)

    assert len(lines) == 1
