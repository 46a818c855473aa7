import inspect

import pytest
from prefect import task
from prefect.states import Failed

import milkrun as mr
from milkrun import exceptions
from prefect_milkrun import wait_job
from prefect_milkrun.failures import RETRYABLE, is_retryable

ALL = [cls for cls in vars(exceptions).values() if inspect.isclass(cls) and issubclass(cls, exceptions.MilkrunError)]


@task
def a_task() -> None:
    """One of a user's."""


def an_error(cls: type[mr.MilkrunError]) -> mr.MilkrunError:
    error = cls.__new__(cls, "it went wrong")
    error.args = ("it went wrong",)
    return error


def test_every_error_of_core_has_its_line() -> None:
    assert set(ALL) == set(RETRYABLE)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_a_task_tries_again_what_core_calls_retryable_and_what_runs_failed_rows_alone(
    cls: type[mr.MilkrunError],
) -> None:
    runs_anew = cls in {mr.JobFailed, mr.JobExpired, mr.TooManyRowsFailed}
    assert is_retryable(a_task, None, Failed(data=an_error(cls))) is (cls.retryable or runs_anew)
    assert is_retryable(wait_job, None, Failed(data=an_error(cls))) is cls.retryable, "our own tasks submit nothing"


def test_a_newer_error_counts_as_its_nearest_known_relative() -> None:
    class Newer(mr.EngineUnavailable):
        pass

    assert is_retryable(None, None, Failed(data=an_error(Newer)))


@pytest.mark.parametrize("data", [ValueError("ours"), None, "text"])
def test_what_is_not_cores_is_not_tried_again(data: object) -> None:
    assert not is_retryable(None, None, Failed(data=data))
