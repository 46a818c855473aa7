"""
The dispatcher's post: a crew while it is held, none otherwise, and a crew that did not start is no crew.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fix_store import World

from milkrun_engine.dispatch import leadership
from milkrun_engine.dispatch.leadership import LEASE_SECONDS, Leadership
from milkrun_engine.service.threads import Threads

pytestmark = pytest.mark.anyio


class Crew:
    """Counts how often it was started and stopped."""

    def __init__(self, log: list[str], fails: int) -> None:
        self.log, self.fails = log, fails

    async def start(self) -> None:
        self.log.append("start")
        if self.log.count("start") <= self.fails:
            raise ConnectionError("the ledger went away")

    async def stop(self) -> None:
        self.log.append("stop")

    def facts(self) -> dict[str, Any]:
        return {"echo": {"state": "ready"}}


@pytest.fixture
def lead(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Leadership, list[str]]]:
    monkeypatch.setattr(leadership, "_ROUND_SECONDS", 0.0)

    def make(me: str, *, fails: int = 0, is_shared: bool = True) -> tuple[Leadership, list[str]]:
        log: list[str] = []
        crew: Any = lambda _term: Crew(log, fails)  # noqa: E731
        return Leadership(me=me, posts=world.store.posts, threads=Threads(), make_crew=crew, is_shared=is_shared), log

    return make


async def test_the_elected_one_has_a_crew_and_the_other_its_facts(lead: Any) -> None:
    (one, one_log), (two, two_log) = lead("one"), lead("two")
    for _ in range(3):
        await one.run_once()
        await two.run_once()
    assert (["start"], []) == (one_log, two_log)
    assert {"echo": {"state": "ready"}} == one.pools() == two.pools()


async def test_a_crew_that_does_not_start_is_tried_again(lead: Any) -> None:
    """The post must not be kept by a process without duties: another one may take it meanwhile."""
    (one, log), (two, two_log) = lead("one", fails=2), lead("two")
    for _ in range(2):
        await one.run_once()
        await asyncio.sleep(0.1)
        assert one.crew is None
    await two.run_once()
    assert ["start", "stop", "start", "stop"] == log
    assert ["start"] == two_log


async def test_the_lease_is_renewed_while_a_crew_starts(lead: Any, world: World) -> None:
    """Ray takes longer to start than a lease lasts."""
    (one, log), (two, two_log) = lead("one"), lead("two")
    started = asyncio.Event()
    begin = Crew.start

    async def slow(crew: Crew) -> None:
        await started.wait()
        await begin(crew)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Crew, "start", slow)
        for _ in range(3):
            await one.run_once()
            world.advance(LEASE_SECONDS - 1)
            await two.run_once()
        started.set()
        await asyncio.sleep(0.1)
    assert (["start"], []) == (log, two_log)
    assert one.crew is not None


async def test_who_loses_the_post_dismisses_its_crew(lead: Any, world: World) -> None:
    (one, log), (two, _) = lead("one"), lead("two")
    await one.run_once()
    world.advance(LEASE_SECONDS + 1)
    await two.run_once()
    await one.run_once()
    assert ["start", "stop"] == log
    assert one.crew is None
    assert two.crew is not None


@pytest.mark.parametrize(("is_shared", "ended"), [(True, ["start", "stop"]), (False, ["start"])])
async def test_a_ledger_that_is_away_costs_the_crew_before_the_lease_is_over(
    lead: Any, world: World, monkeypatch: pytest.MonkeyPatch, is_shared: bool, ended: list[str]
) -> None:
    """Unless nobody else can seek the post: a full disk must not cost a loaded model."""
    one, log = lead("one", is_shared=is_shared)
    await one.run_once()

    def away(*_: Any) -> Any:
        raise ConnectionError("away")

    monkeypatch.setattr(world.store.posts, "take", away)
    await one.run_once()
    assert ["start"] == log, "not for a moment's sake"
    one._held_until -= LEASE_SECONDS - 1
    await one.run_once()
    assert ended == log


async def test_who_stops_leaves_the_post_to_others_at_once(lead: Any) -> None:
    (one, _), (two, two_log) = lead("one"), lead("two")
    await one.run_once()
    await one.stop()
    await two.run_once()
    assert ["start"] == two_log
    await asyncio.gather(one.stop(), two.stop())


async def test_each_crew_knows_its_term(lead: Any, world: World) -> None:
    """Else one that lost the post while it started could take its successor's leases."""
    (one, _), (two, _) = lead("one"), lead("two")
    terms: list[int] = []
    for leadership_of in (one, two):
        make = leadership_of._make_crew
        leadership_of._make_crew = lambda term, make=make: (terms.append(term), make(term))[1]
    await one.run_once()
    world.advance(LEASE_SECONDS + 1)
    await two.run_once()
    await one.run_once()
    assert [1, 2] == terms
