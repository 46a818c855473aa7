"""
Reading a job through the HTTP API, as any client would, and echo's log.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq

from checker.facts import Answer, Evidence, Execution, Interruption, Row, Sighting
from checker.ledger import Place, read_ledger

EXPORT_FORMATS = ("jsonl", "csv", "parquet")
_NUMBERS = ("index", "prompt_tokens", "cached_tokens", "completion_tokens", "attempts")


def gather(
    url: str,
    api_key: str,
    job_id: str,
    place: Place,
    *,
    echo_log: Path | None = None,
    expected: Sequence[Answer] | None = None,
    interruptions: Sequence[Interruption] = (),
    sightings: Sequence[Sighting] = (),
    spare_executions: int = 0,
    page_rows: int = 1_000,
) -> Evidence:
    """
    Collect all that is known of an ended job.

    Args:
        expected: what each row must answer, by index.
        interruptions: the server's deaths and stops, as `interruption` saw them.
        sightings: what a reader of the change feed saw meanwhile.
        spare_executions: how many rows may have run again because a replica died.
    """
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=120, trust_env=False
    ) as http:
        job = http.get(f"/api/jobs/{job_id}").raise_for_status().json()
        rows = list(_pages(http, job_id, page_rows))
        exports = {form: _exported(http, job_id, form) for form in EXPORT_FORMATS}
    return Evidence(
        job=job,
        rows=rows,
        exports=exports,
        ledger=read_ledger(place, job_id),
        executions=read_log(echo_log, job_id) if echo_log is not None else None,
        interruptions=interruptions,
        sightings=[seen for seen in sightings if seen.job_id == job_id],
        expected=expected,
        spare_executions=spare_executions,
        cursors=[seen.number for seen in sightings],
    )


def read_log(path: Path, job_id: str) -> list[Execution]:
    """The rows of a job that echo began, in the order of its log."""
    if not path.exists():
        return []
    with path.open("rb") as lines:
        facts = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [
        Execution(fact["index"], fact["chunk"], fact["epoch"], fact["pid"], fact["t"])
        for fact in facts
        if fact["job_id"] == job_id
    ]


def _pages(http: httpx.Client, job_id: str, page_rows: int) -> Any:
    after, complete = -1, False
    while not complete:
        params = {"after": after, "limit": page_rows}
        page = http.get(f"/api/jobs/{job_id}/results", params=params).raise_for_status().json()
        yield from (_page_row(row) for row in page["rows"])
        if not page["rows"] and not page["complete"]:
            return  # an unfinished job: its settled prefix
        after, complete = page["next_after"], page["complete"]


def _page_row(row: dict[str, Any]) -> Row:
    error = row["error"] or {}
    return Row(
        index=row["index"],
        key=row["key"],
        status=row["status"],
        code=error.get("code"),
        message=error.get("message"),
        output=row["output"],
        finish_reason=row["finish_reason"],
        prompt_tokens=row["prompt_tokens"],
        cached_tokens=row["cached_tokens"],
        completion_tokens=row["completion_tokens"],
        attempts=row["attempts"],
    )


def _exported(http: httpx.Client, job_id: str, form: str) -> list[Row]:
    data = http.get(f"/api/jobs/{job_id}/results", params={"format": form}).raise_for_status().content
    match form:
        case "jsonl":
            return [_flat_row(json.loads(line)) for line in data.splitlines()]
        case "csv":
            return [_flat_row(_csv_values(row)) for row in csv.DictReader(io.StringIO(data.decode(), newline=""))]
        case _:
            return [_flat_row(row) for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def _csv_values(row: dict[str, str]) -> dict[str, Any]:
    return {name: int(text) if name in _NUMBERS else text or None for name, text in row.items()}


def _flat_row(row: dict[str, Any]) -> Row:
    return Row(
        index=row["index"],
        key=row["key"],
        status=row["status"],
        code=row["error_code"],
        message=row["error_message"],
        output=row["output"],
        finish_reason=row["finish_reason"],
        prompt_tokens=row["prompt_tokens"],
        cached_tokens=row["cached_tokens"],
        completion_tokens=row["completion_tokens"],
        attempts=row["attempts"],
    )
