"""
Every pool keeps the same promises: rows come once, and death is told.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fix_replicas import ECHO, a_handout, outcomes_of

from milkrun.status import RowErrorCode
from milkrun_engine.replicas.base import Outcome, Pool, ReplicaDied, ReplicaHandle, ReplicaLoadError
from milkrun_engine.replicas.local import LocalPool
from milkrun_engine.replicas.ray import RayPool

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]
POOLS: list[Callable[[Path], Pool]] = [LocalPool, RayPool]


@pytest.fixture(scope="module", params=POOLS, ids=["local", "ray"])
async def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pool]:
    made: Pool = request.param(tmp_path_factory.mktemp("data"))
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def echo(pool: Pool) -> AsyncIterator[ReplicaHandle]:
    handle = await pool.start_replica(ECHO)
    yield handle
    await handle.stop()


async def test_a_handout_is_answered(echo: ReplicaHandle) -> None:
    info = await echo.ready()
    assert 32 == info.handout_rows
    outcomes = await outcomes_of(echo, a_handout(["a", "fail: truncated", "slow:0.1"]))
    assert [None, RowErrorCode.truncated, None] == [outcomes[index].error_code for index in range(3)]


async def test_handouts_run_at_the_same_time(echo: ReplicaHandle) -> None:
    await echo.ready()
    start = time.monotonic()
    runs = [outcomes_of(echo, a_handout(["slow:0.5"] * 4, handout_id=i)) for i in range(20)]
    assert 80 == sum(len(outcomes) for outcomes in await asyncio.gather(*runs))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("how", ["kill -9", "die:"])
async def test_death_is_told_and_finished_rows_came_once(pool: Pool, echo: ReplicaHandle, how: str) -> None:
    (pid, *_) = (await echo.ready()).pids
    rows = ["a", "b", "slow:60"] if how == "kill -9" else ["a", "b", "slow:0.5 die later", "slow:60"]
    seen: list[Outcome] = []
    killer: asyncio.Task[None] | None = None
    killed = [0.0]

    async def kill() -> None:
        killed[0] = time.monotonic()
        if how == "kill -9":
            os.kill(pid, signal.SIGKILL)
        else:
            with pytest.raises(ReplicaDied):
                await outcomes_of(echo, a_handout(["die:"], handout_id=2))

    with pytest.raises(ReplicaDied):  # noqa: PT012 (the rows that came before count)
        async for finished in echo.run(a_handout(rows)):
            seen += finished
            killer = killer or asyncio.create_task(kill())
    assert time.monotonic() - killed[0] < 6
    assert killer is not None
    await killer
    assert [0, 1] == sorted(outcome.index for outcome in seen)[:2]
    with pytest.raises(ReplicaDied):
        await outcomes_of(echo, a_handout(["a"], handout_id=3))
    fresh = await pool.start_replica(ECHO)
    await fresh.ready()
    assert 3 == len(await outcomes_of(fresh, a_handout(["a", "b", "c"])))
    await fresh.stop()


async def test_abort_ends_the_unfinished_rows(echo: ReplicaHandle) -> None:
    await echo.ready()
    seen: list[int] = []
    async for finished in echo.run(a_handout(["a", "slow:60"], handout_id=9)):
        seen += [outcome.index for outcome in finished]
        await echo.abort(9)
    assert [0] == seen
    assert 1 == len(await outcomes_of(echo, a_handout(["still alive"])))


async def test_a_frozen_replica_answers_no_beat_and_can_be_killed(pool: Pool) -> None:
    handle = await pool.start_replica(ECHO)
    (pid, *_) = (await handle.ready()).pids
    run = asyncio.create_task(outcomes_of(handle, a_handout(["slow:60"])))
    await asyncio.wait_for(handle.beat(), 10)
    os.kill(pid, signal.SIGSTOP)
    beat = asyncio.create_task(handle.beat())
    assert not (await asyncio.wait({beat}, timeout=0.5))[0]
    await handle.kill()
    await handle.stop()
    for waiting in (beat, run):
        with pytest.raises(ReplicaDied):
            await asyncio.wait_for(waiting, 20)


async def test_abort_of_the_unknown_and_of_the_dead_is_silent(pool: Pool) -> None:
    handle = await pool.start_replica(ECHO)
    await handle.ready()
    await handle.abort(12345)
    await handle.stop()
    await handle.abort(1)
    await handle.stop()


async def test_a_model_that_cant_be_loaded_says_why(pool: Pool) -> None:
    handle = await pool.start_replica(replace(ECHO, replica="nonsense"))
    with pytest.raises(ReplicaLoadError, match="nonsense"):
        await handle.ready()
    await handle.stop()


async def test_the_pace_holds_for_the_whole_replica(pool: Pool) -> None:
    handle = await pool.start_replica(replace(ECHO, engine_args={"seconds_per_row": 0.01, "window_rows": 64}))
    assert 64 == (await handle.ready()).window_rows
    start = time.monotonic()
    await asyncio.gather(*(outcomes_of(handle, a_handout(["x"] * 20, handout_id=i)) for i in range(3)))
    assert time.monotonic() - start >= 0.6
    await handle.stop()
