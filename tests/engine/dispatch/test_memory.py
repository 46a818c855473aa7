"""
Memory is bounded: what a pool claims waits for room, whatever holds the rows up.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_api import Api, serve

from milkrun.status import JobStatus
from milkrun_engine import app
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch import pool_runner, runner
from milkrun_engine.dispatch.pool_runner import PoolRunner
from milkrun_engine.domain.planning import CHUNK_ROWS_MAX

pytestmark = [pytest.mark.anyio, pytest.mark.engine]
_SECONDS = 60.0


class FullDisk(LocalBlobs):
    """Takes inputs, and no results until there is room."""

    is_full = True

    def put(self, name: str, data: bytes) -> str:
        if self.is_full and "out_" in name:
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().put(name, data)


@asynccontextmanager
async def served(folder: Path, **engine_args: Any) -> AsyncIterator[tuple[Api, PoolRunner]]:
    """An engine at work, and its one pool."""
    models = folder / "models.yaml"
    models.write_text(yaml.safe_dump({"models": [{"name": "echo", "engine_args": engine_args}]}))
    async with serve(folder, duties=True, models=models) as api:
        yield api, api.engine.leadership.crew.dispatcher.pools["echo"]


def rows_held(pool: PoolRunner) -> int:
    return sum(len(work.rows) for work in (*pool.works.values(), *pool._committing))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SECONDS):
        while not true():
            await asyncio.sleep(0.01)


async def ended(api: Api, job_id: str) -> dict[str, Any]:
    await until(lambda: api.world.job(job_id).status is JobStatus.succeeded)
    job: dict[str, Any] = (await api.mine.get(f"/api/jobs/{job_id}")).json()
    return job


async def test_nothing_more_is_claimed_while_results_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LocalBlobs", FullDisk)
    rows, bound = 40_000, pool_runner._MOST_UNRECORDED_ROWS
    async with served(tmp_path) as (api, pool):
        job_id = (await api.submit([f"row {index}" for index in range(rows)]))["job"]["id"]
        await until(lambda: sum(len(work.rows) for work in pool._committing) >= bound)
        await asyncio.sleep(2)
        assert rows_held(pool) < bound + 2 * CHUNK_ROWS_MAX
        monkeypatch.setattr(FullDisk, "is_full", False)
        assert (await ended(api, job_id))["rows_succeeded"] == rows


async def test_large_rows_wait_in_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, row = 1_000_000, 20_000
    monkeypatch.setattr(pool_runner, "MOST_BYTES", most)
    monkeypatch.setattr(runner, "MOST_BYTES", most)
    async with served(tmp_path, seconds_per_row=0.005) as (api, pool):
        held = []

        async def watch() -> None:
            while True:
                held.append(sum(work.bytes for work in (*pool.works.values(), *pool._committing)))
                await asyncio.sleep(0.001)

        watching = asyncio.create_task(watch())
        job_id = (await api.submit([f"{index} " + row * "x" for index in range(190)]))["job"]["id"]
        assert (await ended(api, job_id))["rows_succeeded"] == 190
        watching.cancel()
    assert 1.5 * most < max(held) < 2 * most + 16 * row


async def test_a_large_job_that_overtakes_waits_in_the_ledger_too(tmp_path: Path) -> None:
    async with served(tmp_path, seconds_per_row=0.01, window_rows=64) as (api, pool):
        later = [f"row {index}" for index in range(1_000)]
        await api.submit(later)
        await until(lambda: pool._feed.waiting_rows >= 64)
        sooner = (await api.submit([f"sooner {index}" for index in range(10_000)], priority=0))["job"]["id"]
        await until(lambda: any(work.lease.job_id == sooner for work in pool.works.values()))
        await until(lambda: api.world.job(sooner).prepared)
        await asyncio.sleep(2)
        assert rows_held(pool) < 1_000
