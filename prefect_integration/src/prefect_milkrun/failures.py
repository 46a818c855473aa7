"""
Which of core's errors a Prefect task may try again: one table, and the question that tasks ask.

Errors are raised as they are, so a flow catches `milkrun.JobFailed` like everybody else. A job that ended badly is
a reason to repeat a task that submits it, and the flow: the next try runs the rows that have no result. Milkrun's own
tasks are not repeated for it: they would read the same ended job.
"""

from typing import Any

import milkrun as mr
from prefect_milkrun._run import OWN_TASKS

#: whether the same call may succeed later; the nearest class of an error decides
RETRYABLE: dict[type[mr.MilkrunError], bool] = {
    mr.MilkrunError: False,
    mr.RequestError: True,
    mr.ConnectError: True,
    mr.RequestTimeout: True,
    mr.ResponseError: False,
    mr.InvalidRequest: False,
    mr.AuthenticationError: False,
    mr.PermissionDenied: False,
    mr.NotFound: False,
    mr.Conflict: False,
    mr.TooLarge: False,
    mr.RateLimited: True,
    mr.EngineUnavailable: True,
    mr.UnexpectedResponse: False,
    mr.LocalEngineError: False,
    mr.WaitTimeout: False,  # waiting again is the flow's decision
    mr.JobError: False,
    mr.JobFailed: True,
    mr.JobCancelled: False,  # somebody meant it
    mr.JobExpired: True,
    mr.TooManyRowsFailed: True,
}


def may_succeed_later(error: BaseException) -> bool:
    """Whether another try of the same call may end otherwise."""
    nearest = next((cls for cls in type(error).__mro__ if cls in RETRYABLE), None)
    return nearest is not None and RETRYABLE[nearest]


def is_retryable(task: Any, _task_run: Any, state: Any) -> bool:
    """For `@task(retry_condition_fn=is_retryable)`: true for errors that another try may cure."""
    data = getattr(state.data, "result", state.data)  # a persisted error comes in a record
    if isinstance(data, mr.JobError) and task is not None and task.name.startswith(OWN_TASKS):
        return False
    return isinstance(data, BaseException) and may_succeed_later(data)
