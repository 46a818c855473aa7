"""
Every error of core's has one answer in Airflow.
"""

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_provider_milkrun.failures import failure, translated
from milkrun import exceptions
from milkrun.exceptions import (
    JobCancelled,
    JobError,
    MilkrunError,
    UnexpectedResponse,
    WaitTimeout,
)


def _tree(root: type[MilkrunError]) -> list[type[MilkrunError]]:
    return [root, *(each for child in root.__subclasses__() for each in _tree(child))]


EVERY = sorted(_tree(MilkrunError), key=lambda each: each.__name__)


def _an(kind: type[MilkrunError]) -> MilkrunError:
    error = kind.__new__(kind, "what happened")
    error.args = ("what happened",)
    return error


def test_the_walk_sees_the_whole_tree():
    """An error that core adds is seen here."""
    public = [each for each in vars(exceptions).values() if isinstance(each, type) and issubclass(each, MilkrunError)]

    assert set(public) <= set(EVERY)


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_is_translated(kind):
    """What may pass, or runs anew, is left to the task's retries; all else fails the task at once."""
    runs_anew = issubclass(kind, JobError) and not issubclass(kind, JobCancelled)
    may_pass = kind.retryable or kind in (WaitTimeout, UnexpectedResponse)
    expected = AirflowException if may_pass or runs_anew else AirflowFailException

    assert expected is type(failure(_an(kind)))
    assert "what happened" in str(failure(_an(kind)))


@pytest.mark.parametrize("kind", EVERY)
def test_the_cause_is_kept(kind):
    """A log shows what core said, too."""
    with pytest.raises(AirflowException) as caught, translated():
        raise _an(kind)

    assert kind is type(caught.value.__cause__)


@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_a_wrong_argument_fails_the_task(kind):
    """Trying again would not mend it."""
    with pytest.raises(AirflowFailException), translated():
        raise kind("row 3 is int")
