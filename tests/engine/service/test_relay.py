"""
News between engines: none is dropped because the database was away, and whoever was deaf looks for itself.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from threading import Event
from typing import Any

import pytest

from milkrun_engine.service import relay
from milkrun_engine.service.relay import Relay
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads

pytestmark = pytest.mark.anyio


class Line:
    """A shared database's news alone; it is away for the first so many calls."""

    is_shared = True

    def __init__(self, *, away: int) -> None:
        self.away = away
        self.told: list[str] = []

    def tell(self, messages: Sequence[str]) -> None:
        self._call()
        self.told += messages

    def listen(self, stopped: Event) -> Iterator[str]:
        self._call()
        yield ""
        stopped.wait()

    def _call(self) -> None:
        self.away -= 1
        if self.away >= 0:
            raise ConnectionError("away")


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads()
    yield made
    made.stop()


def a_relay(line: Line, threads: Threads) -> tuple[Relay, Signals]:
    signals = Signals()
    database: Any = line
    return Relay(me="one", database=database, threads=threads, signals=signals), signals


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


async def test_what_could_not_be_told_is_told_later_in_its_order(threads: Threads) -> None:
    line = Line(away=1)
    told, signals = a_relay(line, threads)
    signals.relay = told._take
    signals.submitted("echo")
    with pytest.raises(ConnectionError):
        await told.run_once()
    signals.changed("tenant")
    signals.submitted("echo")
    await told.run_once()
    assert ["one submitted echo", "one changed tenant"] == line.told


async def test_who_listens_again_wakes_everybody(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_RETRY_SECONDS", 0.01)
    listener, signals = a_relay(Line(away=2), threads)
    waiter = signals.subscribe("tenant")
    listener.start()
    await until(waiter.is_set)
    assert all(duty.is_set() for duty in (signals.to_prepare, signals.to_dispatch, signals.to_call_back))
    await asyncio.to_thread(listener.stop)
