import inspect

import pytest
from prefect.states import Failed

import milkrun as mr
from milkrun import exceptions
from prefect_milkrun.failures import RETRYABLE, is_retryable

ALL = [cls for cls in vars(exceptions).values() if inspect.isclass(cls) and issubclass(cls, exceptions.MilkrunError)]


def an_error(cls: type[mr.MilkrunError]) -> mr.MilkrunError:
    error = cls.__new__(cls, "it went wrong")
    error.args = ("it went wrong",)
    return error


def test_every_error_of_core_has_its_line() -> None:
    assert set(ALL) == set(RETRYABLE)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_a_task_tries_again_what_core_calls_retryable(cls: type[mr.MilkrunError]) -> None:
    assert is_retryable(None, None, Failed(data=an_error(cls))) is cls.retryable


def test_a_newer_error_counts_as_its_nearest_known_relative() -> None:
    class Newer(mr.EngineUnavailable):
        pass

    assert is_retryable(None, None, Failed(data=an_error(Newer)))


@pytest.mark.parametrize("data", [ValueError("ours"), None, "text"])
def test_what_is_not_cores_is_not_tried_again(data: object) -> None:
    assert not is_retryable(None, None, Failed(data=data))
