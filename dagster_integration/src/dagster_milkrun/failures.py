"""
From core's errors to Dagster's `Failure`: one table, one function.

Retries are the op's own `RetryPolicy`; the table says where they can help. A retried step finds its
running or succeeded job again by its key; where the job failed, or too many of its rows, it runs the rows
without a result.
"""

from collections.abc import Mapping

import dagster as dg

import milkrun as mr
from dagster_milkrun.results import metadata_of
from milkrun import outcome

#: whether trying again may help; the nearest base class decides
ALLOW_RETRIES: Mapping[type[mr.MilkrunError], bool] = {
    mr.MilkrunError: False,
    mr.RequestError: True,
    mr.ResponseError: False,
    mr.RateLimited: True,
    mr.EngineUnavailable: True,
    mr.UnexpectedResponse: False,
    mr.LocalEngineError: False,
    mr.WaitTimeout: True,  # it waits on for the same job
    mr.JobFailed: True,
    mr.JobExpired: True,
    mr.JobCancelled: False,  # somebody wanted that
    mr.TooManyRowsFailed: True,
}


def failure(error: mr.MilkrunError, *, same_job: bool = False) -> dg.Failure:
    """
    Return the Failure that says what went wrong, what the job was, and whether a retry may help.

    Args:
        same_job: a retry would find the same job, failed rows and all.
    """
    nearest = next(kind for kind in type(error).__mro__ if kind in ALLOW_RETRIES)
    facts: dict[str, str | int | float | None] = {"error": type(error).__name__}
    if isinstance(error, mr.JobError | mr.WaitTimeout):
        facts |= outcome.summary(error.job)
    elif isinstance(error, mr.ResponseError):
        facts |= {"http_status": error.status, "code": error.code, "request_id": error.request_id}
    allow = ALLOW_RETRIES[nearest] and not (same_job and isinstance(error, mr.TooManyRowsFailed))
    return dg.Failure(description=str(error), metadata=metadata_of(facts), allow_retries=allow)
