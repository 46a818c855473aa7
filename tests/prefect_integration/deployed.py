"""
The flows of the end-to-end tests, and the process that serves them: `python deployed.py`.
"""

import time
from typing import Any

from prefect import flow, serve

from prefect_milkrun import ainfer, flows, infer


@flow(persist_result=True)
def waits(rows: list[str], credentials: str = "engine", defer: str = "auto", reschedule_seconds: float = 60.0) -> int:
    """Rows to a count of rows that succeeded."""
    results = infer(rows, credentials=credentials, defer=defer, reschedule_seconds=reschedule_seconds)
    return results.rows_succeeded


@flow(persist_result=True)
def waits_late(rows: list[str], credentials: str = "engine") -> int:
    """Suspended only some seconds after it has seen that its job runs."""
    suspend = flows.suspend_flow_run

    def late(**arguments: Any) -> None:
        time.sleep(8)
        suspend(**arguments)

    flows.suspend_flow_run = late  # type: ignore[assignment]  # the process is this run's own
    return infer(rows, credentials=credentials).rows_succeeded


@flow(persist_result=True)
async def awaits_twice(rows: list[str]) -> int:
    """Two jobs, one after the other, awaited."""
    first = await ainfer(rows, credentials="engine")
    again = [row.text or "" for row in await first.ato_list()]
    return (await ainfer(again, credentials="engine")).rows_succeeded


if __name__ == "__main__":
    serve(
        waits.to_deployment("waits"),  # type: ignore[arg-type]
        waits_late.to_deployment("waits-late"),  # type: ignore[arg-type]
        awaits_twice.to_deployment("awaits-twice"),  # type: ignore[arg-type]
        limit=20,
    )
