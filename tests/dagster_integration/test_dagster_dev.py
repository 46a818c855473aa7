"""A real `dagster dev`: web server, daemon, code server and runs in processes of their own."""

import functools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts.dagster import HELD, Dev, until

import milkrun as mr
from milkrun import local

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

PROJECT = Path(__file__).parent / "project.py"
PARTITIONS = {"daily": ["mon", "tue", "wed"], "weekly": ["d0", "d1", "d2", "d3"]}


def serve(home: Path, engine: local.EngineFile, seconds: int, config: str = HELD) -> Dev:
    """`dagster dev` on `project.py`, whose rows take that long."""
    return Dev(home, PROJECT, config, STORY_URL=engine.url, STORY_KEY=engine.api_key, STORY_SECONDS=str(seconds))


@pytest.fixture(scope="module")
def dev(engine: local.EngineFile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """With the limit that holds runs in the queue."""
    with serve(tmp_path_factory.mktemp("dev"), engine, 25) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def backfills(dev: Dev) -> dict[str, str]:
    """The id of each asset's backfill; they go on while other things are tested."""
    return {asset: dev.backfill(asset, keys) for asset, keys in PARTITIONS.items()}


def test_a_held_run_waits_in_the_queue_without_a_process_and_all_that_was_selected_follows(
    dev: Dev, client: mr.Milkrun
) -> None:
    """Two runs, one job, nothing alive in between; then what was selected, then what is automated."""
    first = dev.launch("tickets", "replies", "report")
    held = until(90, lambda: dev.runs(milkrun__asset="replies"))[0]
    until(60, lambda: dev.status(first) == "SUCCESS")
    job_id = held["tags"]["milkrun/job_id"]
    assert dev.materializations("replies") == []
    assert not client.job(job_id).is_terminal
    until(30, lambda: dev.status(held["runId"]) == "QUEUED")
    assert dev.processes_named_by(first)
    until(30, lambda: not dev.run_processes(first))
    assert dev.run_processes(held["runId"]) == []
    until(120, lambda: dev.status(held["runId"]) == "SUCCESS")
    (made,) = dev.materializations("replies")
    assert {"milkrun/job", "milkrun/rows_failed", "milkrun/sample"} <= {
        entry["label"] for entry in made["metadataEntries"]
    }
    assert len(dev.materializations("report")) == 1
    until(120, lambda: dev.materializations("mirrored"))
    assert len(client.jobs(labels={"milkrun/run_id": first})) == 1


def test_a_terminated_held_run_cancels_its_job(dev: Dev, client: mr.Milkrun) -> None:
    """Within ten seconds, and nothing comes after it."""
    dev.launch("endless")
    held = until(90, lambda: dev.runs(milkrun__asset="endless"))[0]
    until(30, lambda: dev.status(held["runId"]) == "QUEUED")
    terminated = time.monotonic()
    dev.terminate(held["runId"])
    job_id = held["tags"]["milkrun/job_id"]
    until(60, lambda: client.job(job_id).status is mr.JobStatus.cancelled)
    took = time.monotonic() - terminated
    print(f"cancelled {took:.1f} s after the click")
    assert took < 20  # five on a machine that does nothing else
    until(30, lambda: dev.runs(milkrun__asset="endless")[0]["tags"]["milkrun/state"] == "cancelled")
    assert [run["status"] for run in dev.runs(milkrun__job_id=job_id)] == ["CANCELED"]


def test_a_terminated_blocking_run_cancels_its_job(dev: Dev, client: mr.Milkrun) -> None:
    run_id = dev.launch("endless_blocking", tags={"milkrun/mode": "blocking"})
    (job,) = until(90, lambda: client.jobs(labels={"milkrun/run_id": run_id}))
    until(30, lambda: dev.status(run_id) == "STARTED")
    dev.terminate(run_id)
    until(60, lambda: client.job(job.id).status is mr.JobStatus.cancelled)
    until(60, lambda: dev.status(run_id) == "CANCELED")


@pytest.mark.parametrize(("asset", "jobs"), [("daily", 3), ("weekly", 1)])
def test_a_backfill_stays_open_and_completes(
    dev: Dev, backfills: dict[str, str], client: mr.Milkrun, asset: str, jobs: int
) -> None:
    """Each partition is materialized once: a run and a job a partition, or one of each for all of them."""
    assert dev.backfill_ends(backfills[asset]) == "COMPLETED_SUCCESS"
    assert sorted(made["partition"] for made in dev.materializations(asset)) == PARTITIONS[asset]
    assert len(client.jobs(labels={"milkrun/backfill": backfills[asset]})) == jobs
    held = [run for run in dev.runs(milkrun__asset=asset) if run["tags"]["milkrun/state"] == "done"]
    assert len(held) == jobs


def test_without_the_limit_it_completes_too(engine: local.EngineFile, tmp_path: Path) -> None:
    """A run that nothing held ends without output, and another one comes; in a backfill it waits."""
    with serve(tmp_path, engine, 20, config="") as dev:
        backfill_id = dev.backfill("daily", PARTITIONS["daily"])
        dev.launch("tickets", "replies", "report")
        look = functools.partial(dev.materializations, "report")
        until(200, look)
        carried = dev.runs(milkrun__asset="replies")
        assert [run["tags"]["milkrun/state"] for run in carried] in (["done", "passed"], ["done"])
        assert len(dev.materializations("replies")) == 1
        assert dev.backfill_ends(backfill_id) == "COMPLETED_SUCCESS"
        assert sorted(made["partition"] for made in dev.materializations("daily")) == PARTITIONS["daily"]
