"""
The sensor: it looks, defers, looks again, and leaves the job alone.
"""

from datetime import timedelta

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_milkrun.sensors import MilkrunJobSensor


def a_sensor(job_id, **options):
    """Make the sensor anew, as each resumption does."""
    return MilkrunJobSensor(task_id="t", job_id=job_id, timeout=60, **options)


@pytest.fixture
def job_id(client):
    """A job that outlives its test, nearly."""
    job_id = client.infer(["slow:60 a"])
    yield job_id
    client.cancel(job_id)


def deferral(function, *arguments, **options):
    """Return how the sensor defers."""
    with pytest.raises(TaskDeferred) as caught:
        function(*arguments, **options)
    return caught.value


def test_an_ended_job_is_not_waited_for(client, attempt):
    """Its counts and tokens are the sensor's result."""
    job_id = client.infer(["a", "fail:timeout"])
    client.wait(job_id)

    facts = a_sensor(job_id).execute(attempt())
    assert (facts["rows_succeeded"], facts["row_errors"]) == (1, {"timeout": 1})


def test_it_judges_by_failed_rows(client, attempt):
    """As the operator does."""
    job_id = client.infer(["a", "fail:timeout"])
    client.wait(job_id)
    with pytest.raises(AirflowFailException, match="TooManyRowsFailed"):
        a_sensor(job_id, max_failed_rows=0).execute(attempt())


def test_its_trigger_never_cancels(job_id, attempt):
    """The job is another's."""
    assert deferral(a_sensor(job_id).execute, attempt()).trigger.cancel_on_kill is False


@pytest.mark.parametrize(("soft_fail", "expected"), [(False, AirflowSensorTimeout), (True, AirflowSkipException)])
def test_a_timeout_leaves_the_job(job_id, attempt, client, soft_fail, expected):
    """And fails or skips the task, as it was asked to."""
    first = deferral(a_sensor(job_id).execute, attempt())
    with pytest.raises(expected):
        a_sensor(job_id, soft_fail=soft_fail).execute_complete(
            attempt(), event={"job_id": job_id, "reason": "timeout"}, **first.kwargs
        )
    assert not client.job(job_id).is_terminal


@pytest.mark.parametrize("event", [None, {"job_id": "job_x", "reason": "unsure", "message": "gone"}])
def test_a_broken_wait_is_taken_up_again_but_not_for_ever(job_id, attempt, event):
    """A connection that only the workers have would make it run in circles."""
    deferred = deferral(a_sensor(job_id).execute, attempt())
    deadline = deferred.kwargs["deadline"]
    for _ in range(3):
        deferred = deferral(a_sensor(job_id).execute_complete, attempt(), event=event, **deferred.kwargs)
        assert deadline == deferred.trigger.deadline
    with pytest.raises(AirflowException, match="goes on"):
        a_sensor(job_id).execute_complete(attempt(), event=event, **deferred.kwargs)


def test_a_job_that_is_not_there_fails_at_once(engine, attempt):
    """A wrong id is wrong next time, too."""
    with pytest.raises(AirflowFailException, match="NotFound"):
        a_sensor("job_nowhere").execute(attempt())


@pytest.mark.parametrize(("soft_fail", "expected"), [(False, AirflowFailException), (True, AirflowSkipException)])
@pytest.mark.parametrize("deferrable", [True, False])
def test_a_job_that_did_not_succeed_is_not_looked_at_again(client, attempt, soft_fail, expected, deferrable):
    """A retry would read the same end."""
    job_id = client.infer(["slow:60 a"])
    client.cancel(job_id)
    with pytest.raises(expected, match="JobCancelled"):
        a_sensor(job_id, soft_fail=soft_fail, deferrable=deferrable).execute(attempt())


def test_airflows_time_limit_is_kept(job_id, attempt):
    """Airflow itself does not look at it while a task is deferred."""
    limited = a_sensor(job_id, execution_timeout=timedelta(seconds=5))
    assert timedelta(seconds=5) == deferral(limited.execute, attempt()).timeout


def test_a_broken_trigger_is_replaced_once(job_id, attempt):
    """Airflow keeps nothing of the sensor's then; a second time it is left to the retries."""
    context = attempt()
    broken = {"error": "Trigger failure", "traceback": ["boom"]}
    deferred = deferral(a_sensor(job_id).resume_execution, "__fail__", broken, context)
    assert job_id == deferred.trigger.job_id
    with pytest.raises(AirflowException, match="goes on"):
        a_sensor(job_id).execute_complete(context, event=None, **deferred.kwargs)
