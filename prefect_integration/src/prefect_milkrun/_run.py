"""
Where in Prefect we are: the flow run, and what a submit says about it.

A job's idempotency key is made of the flow run and the call in it, which stay the same when the run is
retried, resumed or started again elsewhere. Its label `prefect_attempt` says which try of the flow, and of the
caller's task in it, made it: an attempt that finds its own job ended badly reports that, a later one runs the rows
that have no result.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import get_current_settings
from prefect.utilities.hashing import hash_objects

import milkrun as mr
from milkrun import outcome
from milkrun.hashing import key_of

ORCHESTRATOR = {"orchestrator": "prefect"}  #: every job of ours carries this label
RUN_LABEL = "prefect_flow_run_id"
ATTEMPT_LABEL = "prefect_attempt"
CALLBACK_LABEL = "prefect_callback"  #: the engine was asked to resume the flow run
TAG = "milkrun"  #: a flow run that is suspended for a job carries this tag
AWAITS = "milkrun:"  #: and one with the job's id behind it
_COUNTER = "milkrun"
OWN_TASKS = "milkrun-"  #: the names of this package's own tasks begin so


def prefect() -> SyncPrefectClient:
    """Return a blocking client of Prefect's API, from async code too."""
    return get_client(sync_client=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The flow run (and task run) that the caller is in; all None in a plain script."""

    flow_run_id: UUID | None = None
    flow_name: str | None = None
    deployment_id: UUID | None = None
    is_subflow: bool = False
    is_async: bool = False
    task_run_id: UUID | None = None
    task_try: int = 0  #: how often the task was tried before in this try of its flow, if it is the caller's own

    @classmethod
    def now(cls) -> Self:
        """Look at the context."""
        flow, task = FlowRunContext.get(), TaskRunContext.get()
        task_run_id = task.task_run.id if task else None
        task_try = max(0, task.task_run.run_count - 1) if task and not task.task.name.startswith(OWN_TASKS) else 0
        if flow is None or flow.flow_run is None:
            return cls(task_run_id=task_run_id, task_try=task_try)
        return cls(
            flow_run_id=flow.flow_run.id,
            flow_name=flow.flow.name if flow.flow else None,
            deployment_id=flow.flow_run.deployment_id,
            is_subflow=flow.flow_run.parent_task_run_id is not None,
            is_async=bool(flow.flow and flow.flow.isasync),
            task_run_id=task_run_id,
            task_try=task_try,
        )

    @property
    def is_flow_body(self) -> bool:
        """Whether this is the flow function itself, not a task of it."""
        return self.flow_run_id is not None and self.task_run_id is None

    @property
    def can_leave(self) -> bool:
        """Whether this run can end its process and come back: Prefect lets deployed, top-level flow bodies do that."""
        return bool(self.deployment_id) and self.is_flow_body and not self.is_subflow

    def attempt(self) -> int:
        """Count how often this flow run was tried before: being resumed or rescheduled is no new try."""
        if self.flow_run_id is None:
            return 0
        with prefect() as client:
            states = client.read_flow_run_states(self.flow_run_id)
        return sum(state.is_failed() or state.is_crashed() or state.name == "AwaitingRetry" for state in states)

    def key(self, call_key: str | None, rows: Any, options: dict[str, Any]) -> str | None:
        """
        Make the idempotency key of one call; what it submits stands in for a missing `call_key`.

        Raises:
            ValueError: neither tells this call from others.
        """
        if self.flow_run_id is None:
            return key_of("prefect", "task", str(self.task_run_id)) if self.task_run_id else None
        call = call_key or hash_objects(rows, options)
        if call is None:
            raise ValueError("These rows can't be hashed: give call_key= to tell this submit from others of its flow.")
        return key_of("prefect", str(self.flow_run_id), call)

    def labels(self, attempt: int) -> dict[str, str]:
        """Say whose job it is, for the resumer, for lists and for cancelling."""
        about = {
            RUN_LABEL: self.flow_run_id,
            "prefect_flow": self.flow_name,
            "prefect_deployment": self.deployment_id,
            ATTEMPT_LABEL: f"{attempt}.{self.task_try}" if self.task_try else attempt,
        }
        known = {name: str(value) for name, value in about.items() if value is not None}
        return {**ORCHESTRATOR, **known} if self.flow_run_id else ORCHESTRATOR

    def page(self) -> str | None:
        """Return the address of the flow run's page, where it is known."""
        ui_url = get_current_settings().ui_url
        return f"{ui_url.rstrip('/')}/runs/flow-run/{self.flow_run_id}" if ui_url and self.flow_run_id else None

    def callback(self, api_url: str | None) -> dict[str, Any] | None:
        """Describe the call with which the engine resumes this flow run."""
        settings = get_current_settings().api
        url = api_url or settings.url
        if url is None or self.flow_run_id is None:
            return None
        headers = {}
        if settings.key is not None:
            headers["Authorization"] = f"Bearer {settings.key.get_secret_value()}"
        elif settings.auth_string is not None:
            token = base64.b64encode(settings.auth_string.get_secret_value().encode()).decode()
            headers["Authorization"] = f"Basic {token}"
        resume = f"{url.rstrip('/')}/flow_runs/{self.flow_run_id}/resume"
        return {"kind": mr.CallbackKind.prefect_resume, "url": resume, "headers": headers}


def next_call() -> str | None:
    """Number the calls of a flow body: the same in every run of the same body."""
    flow = FlowRunContext.get()
    if flow is None or TaskRunContext.get() is not None:
        return None
    last = flow.task_run_dynamic_keys.get(_COUNTER, -1)
    flow.task_run_dynamic_keys[_COUNTER] = number = int(last) + 1
    return f"call-{number}"


def cancel_jobs_of(client: mr.Milkrun, flow_run_id: str) -> list[mr.Job]:
    """Stop the live jobs of a flow run and return them."""
    try:
        return client.cancel_labelled({RUN_LABEL: flow_run_id})
    except mr.ResponseError as error:
        if error.status not in (404, 405):  # an engine that stops jobs one by one
            raise
    jobs = client.jobs(limit=None, labels={RUN_LABEL: flow_run_id})
    return [client.cancel(job.id) for job in jobs if not job.is_terminal]


def is_verdict(job: mr.Job, labels: Mapping[str, str], max_failed_rows: int | None) -> bool:
    """Whether the job ended badly in this very attempt of this flow run: to be reported, not to be run again."""
    same = all(name in labels and labels[name] == job.labels.get(name) for name in (RUN_LABEL, ATTEMPT_LABEL))
    return same and job.is_terminal and not outcome.is_good(job, max_failed_rows)


def attempt_key(_context: TaskRunContext, _parameters: dict[str, Any]) -> str:
    """For a cache policy: what a flow's earlier try stored does not count in the next."""
    return str(Here.now().attempt())
