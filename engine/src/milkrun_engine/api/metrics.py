"""
`GET /metrics`: the process's own counters, then what the ledger holds, in Prometheus' text format.

The second part is the same on every engine of a database, whichever is asked.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from milkrun.status import CallbackState
from milkrun_engine.api.auth import Authenticator
from milkrun_engine.domain.states import ChunkState
from milkrun_engine.service.metrics import Metrics
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store
from milkrun_engine.store.figures import LedgerFigures

_POOL_STATES = ("stopped", "loading", "ready", "failing")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
Pools = Callable[[], Mapping[str, Mapping[str, Any]]]


class Measured:
    """ASGI middleware: times each request by its route's template."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 500  # of what ends in an exception: the answer is made outside of all middleware

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.answered(method, route, status, time.monotonic() - began)


def router(
    *,
    me: str,
    metrics: Metrics,
    store: Store,
    threads: Threads,
    authenticator: Authenticator,
    pools: Pools,
    models: list[str],
    folders: Mapping[str, Path],
) -> APIRouter:
    """
    Build the route.

    Args:
        me: names this process, as the dispatcher's post does.
        pools: how the pools stand, by model.
        models: those that are declared.
        folders: whose disks' free space is told, by what they hold.
    """
    operations = APIRouter()

    @operations.get("/metrics", tags=["operations"], response_class=Response)
    async def scrape(_tenant: Annotated[str, Depends(authenticator)]) -> Response:
        """Metrics of this process and of the whole ledger; needs any API key, also as a basic password."""
        figures = await threads.read(store.figures.read)
        free = await threads.files(lambda: {name: shutil.disk_usage(path).free for name, path in folders.items()})
        states = {name: str(pools().get(name, {}).get("state", "stopped")) for name in models}
        snapshot = CollectorRegistry()
        snapshot.register(_Snapshot(figures, is_dispatcher=figures.holder == me, states=states, free=free))
        return Response(generate_latest(metrics.registry) + generate_latest(snapshot), media_type=CONTENT_TYPE_LATEST)

    return operations


class _Snapshot(Collector):
    """What was read for one scrape."""

    def __init__(
        self, figures: LedgerFigures, *, is_dispatcher: bool, states: Mapping[str, str], free: Mapping[str, int]
    ) -> None:
        self._figures = figures
        self._is_dispatcher = is_dispatcher
        self._states = states
        self._free = free

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All of it."""
        figures = self._figures
        yield _family("milkrun_jobs", "Jobs by status.", "status", figures.jobs)
        rows = GaugeMetricFamily("milkrun_rows", "Decided rows of all jobs.", labels=["model", "outcome"])
        tokens = GaugeMetricFamily(
            "milkrun_tokens",
            "Tokens of the decided rows; cached ones are a part of the prompts'.",
            labels=["model", "kind"],
        )
        for model, sums in sorted(figures.of_models.items()):
            for outcome in ("succeeded", "failed"):
                rows.add_metric([model, outcome], sums[f"rows_{outcome}"])
            for kind in ("prompt", "cached", "completion"):
                tokens.add_metric([model, kind], sums[f"{kind}_tokens"])
        yield rows
        yield tokens
        yield from self._work()
        states = {state: figures.callbacks.get(state, 0) for state in CallbackState}
        yield _family("milkrun_callbacks", "Callbacks by state.", "state", states)
        yield GaugeMetricFamily(
            "milkrun_is_dispatcher", "Whether this process holds the dispatcher's post.", value=self._is_dispatcher
        )
        yield GaugeMetricFamily(
            "milkrun_dispatcher_term", "How often the dispatcher has changed hands.", value=figures.term
        )
        yield _family("milkrun_disk_free_bytes", "Free space where the engine writes.", "folder", self._free)

    def _work(self) -> Iterator[GaugeMetricFamily]:
        """Chunks and pools."""
        waiting = self._figures.oldest_waiting_seconds
        chunks = GaugeMetricFamily("milkrun_chunks", "Chunks that wait, or are leased.", labels=["pool", "state"])
        for pool in sorted({*self._states, *waiting, *(pool for pool, _ in self._figures.chunks)}):
            for state in (ChunkState.ready, ChunkState.leased):
                chunks.add_metric([pool, state], self._figures.chunks.get((pool, state), 0))
        yield chunks
        yield _family(
            "milkrun_oldest_waiting_seconds",
            "Since the submit of the oldest job that has a chunk waiting; 0 when none has.",
            "pool",
            dict.fromkeys(self._states, 0.0) | dict(waiting),
        )
        states = GaugeMetricFamily("milkrun_pool_state", "1 for the state that a pool is in.", labels=["pool", "state"])
        for pool, current in self._states.items():
            for possible in _POOL_STATES:
                states.add_metric([pool, possible], float(possible == current))
        yield states


def _family(name: str, documentation: str, label: str, values: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for value, number in values.items():
        family.add_metric([str(value)], number)
    return family
