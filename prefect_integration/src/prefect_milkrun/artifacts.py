"""
What a flow run's page shows about its jobs: link, progress, a summary and a few rows.

Never keys, prompts or whole results. All of it is decoration: what Prefect refuses is logged and the flow goes on.
"""

import json
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec
from uuid import UUID

from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.logging import get_logger

import milkrun as mr
from milkrun import outcome
from prefect_milkrun._run import Here, prefect

PREVIEW_ROWS = 10
_PREVIEW_CHARACTERS = 200
P = ParamSpec("P")
log = get_logger("milkrun")


def _decorates(function: Callable[P, object]) -> Callable[P, None]:
    @wraps(function)
    def attempt(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception:
            log.warning("an artifact could not be written", exc_info=True)

    return attempt


def key(job_id: str, what: str) -> str:
    """Name an artifact; Prefect allows lower-case letters, digits and dashes."""
    return f"milkrun-{job_id.lower().replace('_', '-')}-{what}"


def percent(job: mr.Job) -> float:
    """How far a job is, from 0 to 100."""
    if job.is_terminal:
        return 100.0
    return round(100 * min(1.0, job.rows_done / job.rows_total), 1) if job.rows_total else 0.0


@_decorates
def announce(job: mr.Job) -> None:
    """Show that the job exists: its link, and progress that moves later."""
    _create("markdown", job, "link", f"[Milkrun job {job.id}]({job.url})", "The job's page.")
    _create("progress", job, "progress", percent(job), outcome.progress(job))


@_decorates
def move(job: mr.Job) -> None:
    """Move the job's progress."""
    with prefect() as client:
        found = client.read_artifacts(artifact_filter=by_keys([key(job.id, "progress")]), limit=1)
        for artifact in found:
            client.update_artifact(artifact.id, moved(job))


@_decorates
def conclude(job: mr.Job, preview: Sequence[mr.ResultRow]) -> None:
    """Show how the job ended, and its first rows."""
    move(job)
    _create("markdown", job, "summary", _summary(job), "How the job ended.")
    if preview:
        _create("table", job, "rows", json.dumps([_shown(row) for row in preview[:PREVIEW_ROWS]]), "The first rows.")


def moved(job: mr.Job) -> ArtifactUpdate:
    """Describe a job's progress anew."""
    return ArtifactUpdate(data=percent(job), description=outcome.progress(job))


def by_keys(keys: Sequence[str]) -> ArtifactFilter:
    """Find artifacts by their keys."""
    return ArtifactFilter(key=ArtifactFilterKey(any_=list(keys)))


def ids_by_key(artifacts: Sequence[Artifact]) -> dict[str, UUID]:
    """Map keys to the artifacts that bear them."""
    return {artifact.key: artifact.id for artifact in artifacts if artifact.key}


def _create(kind: str, job: mr.Job, what: str, data: Any, description: str) -> None:
    here = Here.now()
    if here.flow_run_id is None and here.task_run_id is None:
        return
    with prefect() as client:
        client.create_artifact(
            ArtifactCreate(
                key=key(job.id, what),
                type=kind,
                data=data,
                description=description,
                flow_run_id=here.flow_run_id,
                task_run_id=here.task_run_id,
            )
        )


def _summary(job: mr.Job) -> str:
    facts = {name: value for name, value in outcome.summary(job).items() if value is not None and name != "url"}
    facts |= {f"failed rows: {code}": count for code, count in sorted(job.row_errors.items())}
    lines = [f"### [Milkrun job {job.id}]({job.url})", "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in facts.items())])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _shown(row: mr.ResultRow) -> dict[str, Any]:
    output = row.text if row.text is not None else ("" if row.output is None else json.dumps(row.output))
    if len(output) > _PREVIEW_CHARACTERS:
        output = output[:_PREVIEW_CHARACTERS] + "…"
    return {
        "index": row.index,
        "key": row.key,
        "status": row.status.value,
        "output": output,
        "error": row.error.code if row.error else None,
    }
