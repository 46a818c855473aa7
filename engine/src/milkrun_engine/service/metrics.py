"""
What this process counts of itself, for Prometheus: a registry of its own, no global state.

Labels come from closed sets only (declared models, our own words, route templates), never from what a user wrote.
What the ledger knows is no counter here: it is read at each scrape, so that several engines on one database agree.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from milkrun.wire import Submitted
from milkrun_engine.domain.errors import EngineError

P = ParamSpec("P")
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Metrics:
    """The counters of one engine process; they begin at zero when it starts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._submits = Counter(
            "milkrun_submits", "Submits that this process answered, by outcome.", ["outcome"], registry=registry
        )
        for outcome in ("created", "reused", "replaced", "refused"):
            self._submits.labels(outcome)
        self._requests = Histogram(
            "milkrun_http_request_seconds",
            "HTTP requests that this process answered; a long-poll counts until its answer.",
            ["method", "route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._writes = Histogram(
            "milkrun_ledger_write_seconds",
            "Transactions of this process that write, their wait for the writer included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.feed_waiters = Gauge(
            "milkrun_feed_waiters", "Long-polls of the change feed that this process holds open.", registry=registry
        )
        self._rescued = Counter(
            "milkrun_leases_rescued", "Leases that ended without a renewal and were given back.", registry=registry
        )
        self._deaths = Counter("milkrun_replica_deaths", "Replicas that died in service.", ["pool"], registry=registry)
        self._suspects = Counter(
            "milkrun_suspect_rows", "Rows that were in flight when a replica died.", ["pool"], registry=registry
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is a template such as `/api/jobs/{job_id}`."""
        self._requests.labels(method, route, str(status)).observe(seconds)

    def wrote(self, seconds: float) -> None:
        """Count a transaction that writes."""
        self._writes.observe(seconds)

    def rescued(self, leases: int) -> None:
        """Count leases that were given back for want of a renewal."""
        self._rescued.inc(leases)

    def died(self, pool: str, suspects: int) -> None:
        """Count a replica's death, and the rows that it had."""
        self._deaths.labels(pool).inc()
        self._suspects.labels(pool).inc(suspects)

    def submitted(self, outcome: str) -> None:
        """Count a submit."""
        self._submits.labels(outcome).inc()


class HasMetrics(Protocol):
    """A use case that counts."""

    _metrics: Metrics


S = TypeVar("S", bound=HasMetrics)


def counts_submits(
    submit: Callable[Concatenate[S, P], Awaitable[Submitted]],
) -> Callable[Concatenate[S, P], Awaitable[Submitted]]:
    """Count what came of each submit."""

    @functools.wraps(submit)
    async def counted(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Submitted:
        try:
            submitted = await submit(self, *args, **kwargs)
        except EngineError:
            self._metrics.submitted("refused")
            raise
        outcome = "reused" if submitted.reused else "replaced" if submitted.replaced else "created"
        self._metrics.submitted(outcome)
        return submitted

    return counted
