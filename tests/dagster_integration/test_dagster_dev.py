"""A real `dagster dev`: web server, daemon, code server and runs in processes of their own."""

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import milkrun as mr
from milkrun import local

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

HELD = """
concurrency:
  runs:
    tag_concurrency_limits:
      - {key: "milkrun/state", value: "waiting", limit: 0}
"""
PARTITIONS = {"daily": ["mon", "tue", "wed"], "weekly": ["d0", "d1", "d2", "d3"]}
SELECTOR = {"repositoryName": "__repository__", "repositoryLocationName": "project.py", "pipelineName": "__ASSET_JOB"}


def until(seconds: float, look: Callable[[], Any]) -> Any:
    """What a look finds, once it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.5)
    return found


@dataclass
class Dev:
    """A running `dagster dev`, spoken to as the web page does."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    backfills: dict[str, str] = field(default_factory=dict)  #: asset → id of its backfill

    def ask(self, query: str, **variables: Any) -> Any:
        """One GraphQL request."""
        answer = httpx.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60)
        assert answer.is_success, answer.text
        found = answer.json()
        assert "errors" not in found, found
        return found["data"]

    def launch(self, *assets: str, tags: dict[str, str] | None = None) -> str:
        """Materialize assets; the run's id."""
        found = self.ask(
            "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) {"
            " __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }"
            " ... on RunConfigValidationInvalid { errors { message } } } }",
            p={
                "selector": {**SELECTOR, "assetSelection": [{"path": [each]} for each in assets]},
                "runConfigData": "{}",
                "mode": "default",
                "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]},
            },
        )["launchRun"]
        assert found["__typename"] == "LaunchRunSuccess", found
        return str(found["run"]["runId"])

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """Runs with these tags (`__` is a slash), the newest first."""
        wanted = [{"key": key.replace("__", "/"), "value": value} for key, value in tags.items()]
        found = self.ask(
            "query($f: RunsFilter) { runsOrError(filter: $f) {"
            " ... on Runs { results { runId status tags { key value } } } } }",
            f={"tags": wanted},
        )
        return [
            {**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}}
            for run in found["runsOrError"]["results"]
        ]

    def status(self, run_id: str) -> str:
        """Where a run stands."""
        found = self.ask("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id)
        return str(found["runOrError"]["status"])

    def materializations(self, asset: str) -> list[dict[str, Any]]:
        """What was materialized, the newest first."""
        found = self.ask(
            "query($k: AssetKeyInput!) { assetOrError(assetKey: $k) { ... on Asset { assetMaterializations {"
            " partition runId metadataEntries { label } } } } }",
            k={"path": [asset]},
        )
        return list(found["assetOrError"].get("assetMaterializations", []))

    def backfill(self, asset: str, partitions: list[str]) -> str:
        """Launch a backfill; its id."""
        found = self.ask(
            "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {"
            " __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
            p={"assetSelection": [{"path": [asset]}], "partitionNames": partitions},
        )["launchPartitionBackfill"]
        assert found["__typename"] == "LaunchBackfillSuccess", found
        return str(found["backfillId"])

    def backfill_ends(self, backfill_id: str, seconds: float = 300) -> str:
        """How a backfill ends."""

        def status() -> str:
            found = self.ask(
                "query($id: String!) { partitionBackfillOrError(backfillId: $id) {"
                " ... on PartitionBackfill { status } } }",
                id=backfill_id,
            )
            return str(found["partitionBackfillOrError"]["status"])

        until(seconds, lambda: status() not in {"REQUESTED", "COMPLETING"})
        return status()

    def terminate(self, run_id: str) -> None:
        """Click on Terminate."""
        self.ask(
            "mutation($id: String!) { terminateRun(runId: $id) { __typename ... on PythonError { message } } }",
            id=run_id,
        )

    def run_processes(self, run_id: str) -> list[int]:
        """Processes of a run."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if run_id in " ".join(child.cmdline()):
                    found.append(child.pid)
            except psutil.Error:
                continue
        return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve(home: Path, engine: local.EngineFile, config: str, **environment: str) -> Iterator[Dev]:
    """`dagster dev` on a home of its own; nothing of it is left."""
    (home / "dagster.yaml").write_text(config)
    url = f"http://127.0.0.1:{(port := free_port())}"
    project = Path(__file__).parent / "project.py"
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STORY_URL": engine.url,
        "STORY_KEY": engine.api_key,
        **environment,
    }
    log = home / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", "dev", "-f", str(project), "-h", "127.0.0.1", "-p", str(port)],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Dagster maps SIGTERM to the inherited SIGINT handler, which a shell's background job ignores.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        try:
            until(180, lambda: process.poll() is not None or is_up(url))
            assert process.poll() is None, log.read_text()
            yield Dev(process, url, log)
        finally:
            stop(process)


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/server_info", timeout=5).is_success
    except httpx.TransportError:
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    everybody = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(30)
    _, alive = psutil.wait_procs(everybody, timeout=15)
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=15)


@pytest.fixture(scope="module")
def dev(engine: local.EngineFile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """With the limit that holds runs in the queue; two backfills go on while other things are tested."""
    for found in serve(tmp_path_factory.mktemp("dev"), engine, HELD, STORY_SECONDS="25"):
        found.backfills = {asset: found.backfill(asset, keys) for asset, keys in PARTITIONS.items()}
        yield found


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
    assert dev.run_processes(first) == dev.run_processes(held["runId"]) == []
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
def test_a_backfill_stays_open_and_completes(dev: Dev, client: mr.Milkrun, asset: str, jobs: int) -> None:
    """Each partition is materialized once: a run and a job a partition, or one of each for all of them."""
    assert dev.backfill_ends(dev.backfills[asset]) == "COMPLETED_SUCCESS"
    assert sorted(made["partition"] for made in dev.materializations(asset)) == PARTITIONS[asset]
    assert len(client.jobs(labels={"milkrun/backfill": dev.backfills[asset]})) == jobs
    held = [run for run in dev.runs(milkrun__asset=asset) if run["tags"]["milkrun/state"] == "done"]
    assert len(held) == jobs


def test_without_the_limit_it_completes_too(engine: local.EngineFile, tmp_path: Path) -> None:
    """A run that nothing held ends without output, and another one comes; in a backfill it waits."""
    for dev in serve(tmp_path, engine, "", STORY_SECONDS="20"):
        backfill_id = dev.backfill("daily", PARTITIONS["daily"])
        dev.launch("tickets", "replies", "report")
        look = functools.partial(dev.materializations, "report")
        until(200, look)
        carried = dev.runs(milkrun__asset="replies")
        assert [run["tags"]["milkrun/state"] for run in carried] in (["done", "passed"], ["done"])
        assert len(dev.materializations("replies")) == 1
        assert dev.backfill_ends(backfill_id) == "COMPLETED_SUCCESS"
        assert sorted(made["partition"] for made in dev.materializations("daily")) == PARTITIONS["daily"]
