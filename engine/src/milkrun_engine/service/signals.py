"""
Wake-ups, inside one engine process and, through a relay, between several.

A lost one costs latency, never correctness: every waiter also looks by itself from time to time.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from enum import StrEnum


class News(StrEnum):
    """What processes tell each other, each with one name."""

    changed = "changed"  #: a tenant's feed has a new number
    submitted = "submitted"  #: a job was accepted, for a pool
    stopped = "stopped"  #: a job was cancelled, failed or replaced


class Signals:
    """Who is told what: the change feed's readers, the dispatcher's duties. Use on the event loop only."""

    def __init__(self) -> None:
        self._changed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.to_prepare = asyncio.Event()  #: a job has input to read
        self.to_dispatch = asyncio.Event()  #: a chunk may be ready, or a pool is needed
        self.to_call_back = asyncio.Event()  #: a job with a callback may have ended, or a receiver is free again
        self.wanted_pools: set[str] = set()  #: pools of jobs just submitted, to be warmed before their first chunk
        self.relay: Callable[[News, str], None] | None = None  #: hands news on to other processes
        self._on_stopped: list[Callable[[str], None]] = []

    def changed(self, tenant_id: str) -> None:
        """Wake the tenant's long-polls: its feed has a new number."""
        self._spread(News.changed, tenant_id)

    def subscribe(self, tenant_id: str) -> asyncio.Event:
        """The event of the tenant's next change; taken before a read, nothing is missed after it."""
        return self._changed[tenant_id]

    def submitted(self, pool: str) -> None:
        """A job was accepted."""
        self._spread(News.submitted, pool)

    def stopped(self, job_id: str) -> None:
        """A job was cancelled, failed or replaced."""
        self._spread(News.stopped, job_id)

    def on_stopped(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener(job_id)` when a job was stopped, so that its rows leave the replicas; returns how to end."""
        self._on_stopped.append(listener)
        return lambda: self._on_stopped.remove(listener)

    def hear(self, news: News, name: str) -> None:
        """Act on news, this process's own or another's."""
        match news:
            case News.changed:
                self._changed.pop(name, asyncio.Event()).set()
            case News.submitted:
                self.wanted_pools.add(name)
                self.to_prepare.set()
                self.to_dispatch.set()
            case News.stopped:
                self.to_call_back.set()
                for listener in self._on_stopped:
                    listener(name)

    def missed(self) -> None:
        """Wake everybody: news may have been lost. Who works on a job that was stopped finds out by its heartbeat."""
        for tenant_id in list(self._changed):
            self.hear(News.changed, tenant_id)
        for duty in (self.to_prepare, self.to_dispatch, self.to_call_back):
            duty.set()

    def _spread(self, news: News, name: str) -> None:
        self.hear(news, name)
        if self.relay is not None:
            self.relay(news, name)


async def wait_event(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event at most so long; whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
