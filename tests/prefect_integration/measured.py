"""
The flows of `tests/measure prefect`, and its process of many waits: `python measured.py JOB_IDS FIGURES`.
"""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow

import milkrun as mr
from prefect_milkrun import MilkrunCredentials, await_job, cancels_jobs, infer

NOWHERE = "http://127.0.0.1:9/api"  # nobody listens there


@flow(persist_result=True)
def classify(rows: list[str], defer: str = "suspend", called: bool = True) -> int:
    """Rows to a count of rows that succeeded; a run that is not called back has only the resumer."""
    credentials = MilkrunCredentials(prefect_api_url=None if called else NOWHERE)
    return infer(rows, credentials=credentials, defer=defer).rows_succeeded


@flow(persist_result=True, on_cancellation=[cancels_jobs()])
def hooked(rows: list[str]) -> int:
    """Waits in place, and knows what to do when it is cancelled."""
    return infer(rows, defer="block").rows_succeeded


@flow(persist_result=True)
def hangs(rows: list[str], accepted: str) -> int:
    """Its first process never hears that the engine has accepted; the file says that it has."""
    submit = mr.Milkrun.submit

    def hang(*args: Any, **options: Any) -> mr.Submitted:
        submitted = submit(*args, **options)
        if not Path(accepted).exists():
            Path(accepted).write_text(submitted.job.id)
            time.sleep(3600)
        return submitted

    mr.Milkrun.submit = hang  # type: ignore[method-assign]  # the process is this run's own
    return infer(rows, defer="suspend").rows_succeeded


@flow
async def waits(job_ids: Sequence[str]) -> list[float]:
    """One waiting task a job; how long after its end each knew of it."""

    async def late(job_id: str) -> float:
        job = await await_job(job_id)
        assert job.finished_at is not None
        return time.time() - job.finished_at.timestamp()

    return await asyncio.gather(*map(late, job_ids))


class Requests(logging.Handler):
    """Remembers when the engine answered a request."""

    def __init__(self, engine: str) -> None:
        super().__init__()
        self._engine = engine
        self.at: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self._engine in record.getMessage():
            self.at.append(record.created)


def main() -> None:
    """Wait for the jobs that one file names, and leave the figures in the other."""
    requests = Requests(os.environ["MILKRUN_URL"])
    logger = logging.getLogger("httpx")
    logger.setLevel(logging.INFO)
    logger.addHandler(requests)
    asked, answered = map(Path, sys.argv[1:])
    late = asyncio.run(waits(asked.read_text().split()))
    draft = answered.with_suffix(".draft")
    draft.write_text(json.dumps({"late": late, "requests": requests.at}))
    draft.rename(answered)


if __name__ == "__main__":
    main()
