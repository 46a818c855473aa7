"""
From an Airflow connection to clients of its engine.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson
from airflow.sdk import BaseHook, Connection
from airflow.sdk.configuration import conf

import milkrun as mr
from airflow_provider_milkrun.failures import translated
from milkrun.hashing import key_of

_CACHED_SECONDS = 60.0  # a changed key is seen within a minute; a thousand triggers look it up once


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a connection says; the key never shows in a repr."""

    url: str | None  #: `MILKRUN_URL` when the connection names no host
    api_key: str | None = field(default=None, repr=False)
    model: str | None = None
    job_priority: int | None = None
    public_url: str | None = None
    namespace: str

    @classmethod
    def of(cls, connection: Connection, extra: Mapping[str, Any]) -> Self:
        """Read a connection: its host is a URL, or a host with port and, in `schema`, http or https."""
        url = (connection.host or "").strip() or None
        if url and "://" not in url:
            url = f"{connection.schema or 'http'}://{url}"
        if url and connection.port:
            url = str(httpx.URL(url).copy_with(port=connection.port))
        priority = extra.get("job_priority")
        if priority not in (None, "") and not str(priority).strip().isdigit():
            raise ValueError(
                f"the connection {connection.conn_id!r} has job_priority {priority!r}: 0 to 10 is asked for"
            )
        return cls(
            url=url.rstrip("/") if url else None,
            api_key=connection.password or None,
            model=extra.get("model") or None,
            job_priority=int(priority) if priority not in (None, "") else None,
            public_url=(extra.get("public_url") or "").rstrip("/") or None,
            namespace=extra.get("namespace") or conf.get("api", "base_url", fallback=""),
        )

    def client(self) -> mr.Milkrun:
        """Return a new client; close it."""
        return mr.Milkrun(self.url, self.api_key, local=False)

    def async_client(self) -> mr.AsyncMilkrun:
        """Return a new client whose methods are awaited; close it."""
        return mr.AsyncMilkrun(self.url, self.api_key, local=False)

    def watcher(self) -> mr.Watcher:
        """Return this process's one watcher of the engine."""
        return mr.Watcher.shared(self.url, self.api_key)

    def key_of(self, task_instance: Any) -> str:
        """Make the idempotency key: the same for every attempt at a task instance, and for no other one."""
        ti = task_instance
        return key_of("airflow", self.namespace, ti.dag_id, ti.task_id, ti.run_id, map_index_of(ti))

    def page(self, job: mr.Job) -> str:
        """Return the address of the job's page, as a browser reaches it."""
        return self.public_url + httpx.URL(job.url).raw_path.decode() if self.public_url else job.url


@contextmanager
def connected(conn_id: str) -> Iterator[tuple[Engine, mr.Milkrun]]:
    """Look a connection up and yield its engine with a client; core's errors are raised as Airflow's. Blocking."""
    with translated(conn_id):
        engine = MilkrunHook(conn_id).engine()
        with engine.client() as client:
            yield engine, client


def map_index_of(task_instance: Any) -> int:
    """Return a task instance's map index; -1 for one that is not mapped."""
    return -1 if task_instance.map_index is None else int(task_instance.map_index)


class MilkrunHook(BaseHook):
    """
    Clients of the engine that a connection of type `milkrun` names: its URL as host, the API key as password.

    It never starts a local engine: a worker's engine is somebody's choice, not a surprise.

    Example:
        with MilkrunHook().get_client() as client:
            models = client.models()
    """

    conn_name_attr = "milkrun_conn_id"
    default_conn_name = "milkrun_default"
    conn_type = "milkrun"
    hook_name = "Milkrun"

    def __init__(self, milkrun_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.milkrun_conn_id = milkrun_conn_id

    def engine(self) -> Engine:
        """Look the connection up. Blocking."""
        connection = self.get_connection(self.milkrun_conn_id)
        return Engine.of(connection, connection.extra_dejson)

    async def aengine(self) -> Engine:
        """Look the connection up, once a minute for all who ask in this event loop."""
        place, now = (id(asyncio.get_running_loop()), self.milkrun_conn_id), time.monotonic()
        asked_at, task = _lookups.get(place, (0.0, None))
        if task is None or now - asked_at > _CACHED_SECONDS or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.ensure_future(self._look_up())
            _lookups[place] = now, task
        return await asyncio.shield(task)  # one who stops waiting must not end the others' lookup

    async def _look_up(self) -> Engine:
        # Not `aget_connection`: before Airflow 3.3.2 it masks secrets by a blocking call, which stalls the triggerer.
        connection = await get_async_connection(self.milkrun_conn_id)
        return Engine.of(connection, await get_async_extra_dejson(connection))

    def get_conn(self) -> mr.Milkrun:
        """Return a new client; close it."""
        return self.get_client()

    def get_client(self) -> mr.Milkrun:
        """Return a new client; close it, or use it in a with statement."""
        return self.engine().client()

    async def get_async_client(self) -> mr.AsyncMilkrun:
        """Return a new client whose methods are awaited; close it, or use it in an async with statement."""
        return (await self.aengine()).async_client()

    def test_connection(self) -> tuple[bool, str]:
        """Ask the engine for its health and, with the key, for its models."""
        try:
            with self.get_client() as client:
                health, models = client.health(), client.models()
        except Exception as error:
            return False, f"{type(error).__name__}: {error}"
        return True, f"Milkrun {health.version} is {health.status}; models: {', '.join(each.name for each in models)}"

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Return the form's labels for an Airflow that does not read them from the provider's metadata."""
        return {
            "hidden_fields": ["schema", "login", "port"],
            "relabeling": {"host": "Engine URL", "password": "API key"},
            "placeholders": {"host": "http://milkrun:8787"},
        }


_lookups: dict[tuple[int, str], tuple[float, asyncio.Future[Engine] | None]] = {}
