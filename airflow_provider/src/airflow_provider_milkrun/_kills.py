"""
Did a user end this task for good? Only then may its job be cancelled on a kill.

A trigger or a worker is also stopped when its task is cleared, redistributed to another triggerer
or evicted; the job is then still wanted, and the next attempt finds it by its key.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
RUNNING: set[asyncio.Future[None]] = set()  # an event loop alone does not keep its tasks


def question(task_instance: Any) -> dict[str, Any]:
    """Return the arguments that ask Airflow for the state of just this task instance."""
    return {
        "dag_id": task_instance.dag_id,
        "run_ids": [task_instance.run_id],
        "task_ids": [task_instance.task_id],
        "map_index": task_instance.map_index,
    }


def state_of(task_instance: Any, states: Mapping[str, Mapping[str, Any]] | None) -> str | None:
    """
    Find the task instance in Airflow's answer, which names a mapped one `task_3`.

    A cleared one is there without a state; one that is not there was deleted with its run or DAG. None also where
    Airflow gave no answer.
    """
    if states is None:
        return None
    found = states.get(task_instance.run_id, {})
    mapped = task_instance.map_index is not None and task_instance.map_index >= 0
    name = f"{task_instance.task_id}_{task_instance.map_index}" if mapped else task_instance.task_id
    if name not in found:
        return "removed"
    return None if found[name] is None else str(found[name])
