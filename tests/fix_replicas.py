"""
Hand-outs and pools for the tests of replicas.
"""

import json
from collections.abc import Sequence
from typing import Any

import psutil

from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.base import HandOut, HandOutRow, Outcome, ReplicaHandle
from milkrun_engine.replicas.requests import CHAT

ECHO = ModelSpec(name="echo", weights="", replica="echo")


def a_row(index: int = 0, body: Any = None, *, endpoint: str = CHAT) -> HandOutRow:
    """One row; a text is the user's message."""
    if body is None or isinstance(body, str):
        body = {"messages": [{"role": "user", "content": body or "hello"}]}
    return HandOutRow(index, endpoint, body if isinstance(body, bytes) else json.dumps(body).encode())


def a_handout(rows: Sequence[Any], *, handout_id: int = 1, job_id: str = "job_1", **defaults: Any) -> HandOut:
    """A hand-out of rows, or of what `a_row` takes; the rest are the job's defaults."""
    made = [row if isinstance(row, HandOutRow) else a_row(index, row) for index, row in enumerate(rows)]
    return HandOut(handout_id, job_id, 0, 1, 1, json.dumps(defaults).encode(), made)


async def outcomes_of(handle: ReplicaHandle, handout: HandOut) -> dict[int, Outcome]:
    """Run a hand-out to its end; every row comes once."""
    outcomes = [outcome async for finished in handle.run(handout) for outcome in finished]
    assert len({outcome.index for outcome in outcomes}) == len(outcomes)
    return {outcome.index: outcome for outcome in outcomes}


def text(outcome: Outcome) -> Any:
    """The output, parsed; fails on an error."""
    assert outcome.output is not None, outcome.error_message
    return json.loads(outcome.output)


def children() -> set[int]:
    """Every process below this one that still runs."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found
