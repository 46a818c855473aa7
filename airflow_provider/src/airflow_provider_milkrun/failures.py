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
    mr.UnexpectedResponse: AirflowException,  # a proxy's page: the engine is being replaced, most likely
    mr.WaitTimeout: AirflowException,
    mr.JobError: AirflowException,  # a retry runs the rows that have no result, those of too many failed rows as well
    mr.JobCancelled: AirflowFailException,  # somebody meant it
}


#: what says nothing about the job: the engine, or the way to it, is away for now
AWAY = (mr.RequestError, mr.RateLimited, mr.EngineUnavailable, mr.UnexpectedResponse)
_OF_CONNECTION = (
    mr.RequestError,
    mr.AuthenticationError,
    mr.PermissionDenied,
    mr.UnexpectedResponse,
    mr.LocalEngineError,
)


def failure(error: mr.MilkrunError, conn_id: str | None = None) -> AirflowException:
    """Return what a task raises for an error of core's; the nearest class in the table decides."""
    kind = next(TABLE[base] for base in type(error).__mro__ if base in TABLE)
    where = f" (host and password come from the connection {conn_id!r})" if conn_id else ""
    return kind(f"{type(error).__name__}: {error}{where if isinstance(error, _OF_CONNECTION) else ''}")


@contextmanager
def translated(conn_id: str | None = None) -> Iterator[None]:
    """Raise core's errors as Airflow's, naming the connection that may be to blame; a wrong argument ends the task."""
    try:
        yield
    except mr.MilkrunError as error:
        raise failure(error, conn_id) from error
    except (TypeError, ValueError) as error:
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error
