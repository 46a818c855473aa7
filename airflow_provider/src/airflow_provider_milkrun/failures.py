"""
From core's errors to Airflow's two: one table, one function.

`AirflowException` leaves it to the task's own retries, whose idempotency key finds the same job again;
`AirflowFailException` ends the task, because another try can't help.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from airflow.sdk.exceptions import AirflowException, AirflowFailException

import milkrun as mr

Failure: TypeAlias = type[AirflowException]

TABLE: Mapping[type[mr.MilkrunError], Failure] = {
    mr.MilkrunError: AirflowFailException,
    mr.RequestError: AirflowException,
    mr.ResponseError: AirflowFailException,
    mr.RateLimited: AirflowException,
    mr.EngineUnavailable: AirflowException,
    mr.WaitTimeout: AirflowException,
    mr.JobError: AirflowException,  # a failed or expired job is not reused: a retry runs its rows again
    mr.JobCancelled: AirflowFailException,  # somebody meant it
    mr.TooManyRowsFailed: AirflowFailException,  # the job succeeded: a retry would find it, and fail again
}


def failure(error: mr.MilkrunError) -> AirflowException:
    """Return what a task raises for an error of core's; the nearest class in the table decides."""
    kind = next(TABLE[base] for base in type(error).__mro__ if base in TABLE)
    return kind(f"{type(error).__name__}: {error}")


@contextmanager
def translated() -> Iterator[None]:
    """Raise core's errors as Airflow's; a wrong argument ends the task too."""
    try:
        yield
    except mr.MilkrunError as error:
        raise failure(error) from error
    except (TypeError, ValueError) as error:
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error
