"""
What stands in for Airflow where a test needs no more than a task instance and a connection.
"""

import json
from typing import Any


def connection(engine: Any, **extra: Any) -> str:
    """The connection's JSON, as in an environment variable."""
    return json.dumps({"conn_type": "milkrun", "host": engine.url, "password": engine.api_key, "extra": extra})


class Store(dict):
    """A task's state store, as Airflow 3.3 has it."""

    def set(self, key: str, value: Any, retention: Any = None) -> None:
        json.dumps(value)
        self[key] = value


class Attempt:
    """A task instance: what operators ask of it."""

    def __init__(self, run_id: str, state: str = "running", map_index: int = -1) -> None:
        self.dag_id, self.task_id, self.run_id, self.map_index, self.try_number = "d", "t", run_id, map_index, 1
        self.log_url = f"http://airflow/dags/d/runs/{run_id}/tasks/t"
        self.state, self.xcoms = state, {}

    def xcom_push(self, key: str, value: Any) -> None:
        json.dumps(value)
        self.xcoms[key] = value

    def get_task_states(self, dag_id: str, run_ids: list[str], task_ids: list[str], map_index: int) -> Any:
        name = task_ids[0] if map_index < 0 else f"{task_ids[0]}_{map_index}"
        return {run_ids[0]: {name: self.state}}
