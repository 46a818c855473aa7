"""
The word between a trigger and its task, which may be of two versions.
"""

import json

import pytest

from airflow_provider_milkrun.events import JobEvent, Reason


@pytest.mark.parametrize("reason", list(Reason))
def test_an_event_survives_the_database(reason):
    """What the trigger says is what the task reads."""
    event = JobEvent(job_id="job_1", reason=reason, message="half way")

    assert event == JobEvent.read(json.loads(json.dumps(event.payload())))


def test_a_newer_triggers_words_are_no_error():
    """A reason that this version doesn't know makes the task look at the job; a new field is ignored."""
    event = JobEvent.read({"job_id": "job_1", "reason": "paused", "colour": "green"})

    assert Reason.unsure is event.reason


@pytest.mark.parametrize("payload", [None, "job_1", [], {}, {"reason": "ended"}, {"job_id": 3, "reason": "ended"}])
def test_nonsense_is_refused(payload):
    """An event of nothing must never count as an end."""
    with pytest.raises(ValueError, match="not one of MilkrunJobTrigger"):
        JobEvent.read(payload)
