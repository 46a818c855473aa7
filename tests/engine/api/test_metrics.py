"""
`/metrics`: exact figures of what happened, under labels from closed sets, behind a key.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fix_api import KEY, POOL, Api, serve
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.anyio


async def scraped(api: Api) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels' values (in the order of their names)."""
    answer = await api.mine.get("/metrics")
    assert (200, "text/plain") == (answer.status_code, answer.headers["content-type"].partition(";")[0])
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Api]:
    """An engine that runs its jobs by itself, on a real echo replica."""
    async with serve(tmp_path, duties=True, pool="local") as api:
        yield api


async def ended(api: Api, rows: list[Any], **facts: Any) -> dict[str, Any]:
    submitted = await api.submit(rows, **facts)
    cursor, job = submitted["cursor"], submitted["job"]
    while True:
        news = (await api.mine.get("/api/changes", params={"after": cursor, "wait": 60})).json()
        cursor = news["cursor"]
        if job["id"] in {each["id"] for each in news["jobs"]}:
            return dict((await api.mine.get(f"/api/jobs/{job['id']}")).json())


async def test_the_figures_after_a_job_are_exact(running: Api) -> None:
    job = await ended(running, ["a", "b b", "fail: truncated", 3], idempotency_key="k")
    await running.submit(["a", "b b", "fail: truncated", 3], idempotency_key="k")
    other = {"rows": ["x"], "idempotency_key": "k"}
    assert 422 == (await running.mine.post("/api/jobs", json=other)).status_code
    found = await scraped(running)
    expected = {
        ("milkrun_jobs", "succeeded"): 1,
        ("milkrun_jobs", "running"): 0,
        ("milkrun_rows", POOL, "succeeded"): 2,
        ("milkrun_rows", POOL, "failed"): 2,
        ("milkrun_tokens", "prompt", POOL): job["usage"]["prompt_tokens"],
        ("milkrun_tokens", "cached", POOL): job["usage"]["cached_tokens"],
        ("milkrun_tokens", "completion", POOL): job["usage"]["completion_tokens"],
        ("milkrun_chunks", POOL, "ready"): 0,
        ("milkrun_chunks", POOL, "leased"): 0,
        ("milkrun_oldest_waiting_seconds", POOL): 0,
        ("milkrun_pool_state", POOL, "ready"): 1,
        ("milkrun_pool_state", POOL, "failing"): 0,
        ("milkrun_is_dispatcher",): 1,
        ("milkrun_dispatcher_term",): 1,
        ("milkrun_submits_total", "created"): 1,
        ("milkrun_submits_total", "reused"): 1,
        ("milkrun_submits_total", "replaced"): 0,
        ("milkrun_submits_total", "refused"): 1,
        ("milkrun_http_request_seconds_count", "POST", "/api/jobs", "201"): 1,
        ("milkrun_http_request_seconds_count", "POST", "/api/jobs", "200"): 1,
        ("milkrun_http_request_seconds_count", "POST", "/api/jobs", "422"): 1,
        ("milkrun_http_request_seconds_count", "GET", "/api/jobs/{job_id}", "200"): 1,
        ("milkrun_feed_waiters",): 0,
        ("milkrun_leases_rescued_total",): 0,
        ("milkrun_callbacks", "pending"): 0,
    }
    assert expected == {name: found.get(name) for name in expected}
    assert job["usage"]["prompt_tokens"] > 0
    assert found["milkrun_ledger_write_seconds_count",] >= 3
    assert found["milkrun_disk_free_bytes", "data"] > 0


async def test_what_waits_is_told_by_pool(api: Api) -> None:
    await api.submit([f"row {number}" for number in range(20)], callback={"url": "http://127.0.0.1:9/"})
    api.world.prepare()
    [lease, _] = api.world.claim(2, pool=POOL)
    api.world.advance(100)
    found = await scraped(api)
    assert (2, 1) == (found["milkrun_chunks", POOL, "leased"], found["milkrun_chunks", POOL, "ready"])
    assert 100 == pytest.approx(found["milkrun_oldest_waiting_seconds", POOL], abs=5)
    assert 0 == found["milkrun_callbacks", "pending"]
    api.world.expire_leases()
    api.world.run(POOL)
    found = await scraped(api)
    assert (0, 0) == (found["milkrun_chunks", POOL, "leased"], found["milkrun_oldest_waiting_seconds", POOL])
    assert 1 == found["milkrun_callbacks", "pending"]
    assert lease.pool == POOL


async def test_deaths_and_suspects_are_counted(running: Api) -> None:
    """One row that kills its replica, alone in its job: one death in company of nobody, then two alone."""
    job = await ended(running, ["die: now"])
    assert {"engine_crash": 1} == job["row_errors"]
    found = await scraped(running)
    deaths = found["milkrun_replica_deaths_total", POOL]
    assert (2, 2) == (deaths, found["milkrun_suspect_rows_total", POOL])


async def test_a_held_long_poll_is_a_waiter(api: Api) -> None:
    cursor = (await api.submit())["cursor"]
    await api.mine.get("/api/changes", params={"after": cursor, "on": "status"})
    cursor = (await api.mine.get("/api/changes")).json()["cursor"]
    poll = asyncio.create_task(api.mine.get("/api/changes", params={"after": cursor, "wait": 60}))
    async with asyncio.timeout(10):
        while (await scraped(api))["milkrun_feed_waiters",] != 1:
            await asyncio.sleep(0.01)
    api.engine.refuse()
    await poll
    assert 0 == (await scraped(api))["milkrun_feed_waiters",]


async def test_unknown_paths_and_methods_make_no_labels_of_their_own(api: Api) -> None:
    await api.mine.get("/canary/in/a/path")
    await api.mine.request("CANARY", "/canary")
    await api.mine.get("/api/jobs/job_canary")
    answer = await api.mine.get("/metrics")
    assert "canary" not in answer.text.lower()
    found = await scraped(api)
    assert 1 == found["milkrun_http_request_seconds_count", "GET", "none", "404"]
    assert 1 == found["milkrun_http_request_seconds_count", "GET", "/api/jobs/{job_id}", "404"]


async def test_rescued_leases_are_counted(tmp_path: Path) -> None:
    async with serve(tmp_path, pool="local") as api:
        await api.submit()
        api.world.prepare()
        api.world.claim(1, pool=POOL)
        api.world.advance(60)
        await api.engine.leadership.crew._rescuer.run_once()
        assert 1 == (await scraped(api))["milkrun_leases_rescued_total",]


async def test_metrics_want_a_key(api: Api) -> None:
    assert 401 == (await api.nobody.get("/metrics")).status_code
    basic = f"Basic {base64.b64encode(f'prometheus:{KEY}'.encode()).decode()}"
    for header in (basic, f"Bearer {KEY}"):
        assert 200 == (await api.nobody.get("/metrics", headers={"Authorization": header})).status_code


async def test_two_engines_in_one_process_count_apart(tmp_path: Path) -> None:
    """No global state: each has a registry of its own."""
    async with serve(tmp_path / "one") as one, serve(tmp_path / "two") as two:
        await one.submit()
        assert 1 == (await scraped(one))["milkrun_submits_total", "created"]
        assert 0 == (await scraped(two))["milkrun_submits_total", "created"]
