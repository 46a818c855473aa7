"""
A real `dagster dev` under a test's control: web server, daemon, code server and runs in processes of their own.

It has one home and one port, also after it was killed and started again. Nothing of it remains when the block is left.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

START_SECONDS = 180.0
STOP_SECONDS = 60.0
#: What `dagster.yaml` says to keep the runs of unfinished jobs in the queue.
HELD = """
concurrency:
  runs:
    tag_concurrency_limits:
      - {key: "milkrun/state", value: "waiting", limit: 0}
"""
_RUN = "multiprocessing.spawn"  # how the code server starts a run
_PID = re.compile(r"\(pid: (\d+)\)")


class Dev:
    """
    One `dagster dev`, spoken to as its web page does.

    Args:
        home: its folder.
        project: the file of definitions that it serves.
        config: its `dagster.yaml`.
        environ: variables beside the caller's own, such as where the engine is.
    """

    def __init__(self, home: Path, project: Path, config: str = HELD, **environ: str) -> None:
        self.home = home
        self.log = home / "output.log"
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._command = [sys.executable, "-m", "dagster", "dev", "-f", str(project), "-h", "127.0.0.1", "-p", str(port)]
        self._selector = {
            "repositoryName": "__repository__",
            "repositoryLocationName": project.name,
            "pipelineName": "__ASSET_JOB",
        }
        self._environ = {
            **os.environ,
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "DAGSTER_HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **environ,
        }
        self._process: subprocess.Popen[bytes] | None = None
        (home / "dagster.yaml").write_text(config)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> float:
        """Start, and wait until the web server answers; returns the seconds that took."""
        began = time.monotonic()
        with self.log.open("ab") as output:
            process = self._process = subprocess.Popen(
                self._command,
                cwd=self.home,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Dagster maps SIGTERM to the inherited SIGINT handler, which a shell's background job ignores.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )
        until(START_SECONDS, lambda: process.poll() is not None or self._is_up())
        assert process.poll() is None, self.log.read_text()
        return time.monotonic() - began

    def stop(self) -> None:
        """Ask it to end; what is left of it then is killed."""
        if self._process is not None:
            family = self.family()
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            psutil.wait_procs(family, timeout=15)
        self.kill()

    def kill(self) -> None:
        """`kill -9` everything of it at once, runs included."""
        family = self.family()
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, STOP_SECONDS)
        if self._process is not None:
            self._process.wait(STOP_SECONDS)
            self._process = None

    def kill_daemon(self) -> None:
        """`kill -9` the daemon alone: `dagster dev` notices and ends; runs that have begun go on to their end."""
        assert self._process is not None
        (daemon,) = self.family("dagster._daemon")
        daemon.kill()
        self._process.wait(STOP_SECONDS)
        self._process = None

    def family(self, mark: str = "") -> list[psutil.Process]:
        """Its living processes, also those whose parents are gone; or those with a mark in their command."""
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_ours = each.environ().get("DAGSTER_HOME") == str(self.home)
                if is_ours and each.status() != psutil.STATUS_ZOMBIE and mark in " ".join(each.cmdline()):
                    found.append(each)
        return found

    def run_processes(self, run_id: str | None = None) -> list[int]:
        """The living processes of all runs, or of one."""
        alive = [each.pid for each in self.family(_RUN)]
        return alive if run_id is None else sorted(self.processes_named_by(run_id) & set(alive))

    def processes_named_by(self, run_id: str) -> set[int]:
        """The processes that a run's events name, living or not."""
        found = self.ask(
            "query($id: ID!) { logsForRun(runId: $id) {"
            " ... on EventConnection { events { ... on MessageEvent { message } } } } }",
            id=run_id,
        )
        texts = [event.get("message") or "" for event in found["logsForRun"]["events"]]
        return {int(pid) for text in texts for pid in _PID.findall(text)}

    def ask(self, query: str, **variables: Any) -> Any:
        """One GraphQL request."""
        answer = httpx.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60, trust_env=False
        )
        assert answer.is_success, answer.text
        found = answer.json()
        assert "errors" not in found, found
        return found["data"]

    def launch(self, *assets: str, tags: dict[str, str] | None = None) -> str:
        """Materialize assets; the run's id."""
        found = self.ask(
            "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) {"
            " __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }"
            " ... on RunConfigValidationInvalid { errors { message } } ... on InvalidSubsetError { message } } }",
            p={
                "selector": {**self._selector, "assetSelection": [{"path": [each]} for each in assets]},
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

    def backfill_status(self, backfill_id: str) -> str:
        """Where a backfill stands."""
        found = self.ask(
            "query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }",
            id=backfill_id,
        )
        return str(found["partitionBackfillOrError"]["status"])

    def backfill_ends(self, backfill_id: str, seconds: float = 300) -> str:
        """How a backfill ends."""
        until(seconds, lambda: self.backfill_status(backfill_id) not in {"REQUESTED", "COMPLETING"})
        return self.backfill_status(backfill_id)

    def cursor(self, sensor: str) -> str | None:
        """Where a sensor stands, in its own words."""
        selector = {key: self._selector[key] for key in ("repositoryName", "repositoryLocationName")}
        found = self.ask(
            "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor { sensorState {"
            " typeSpecificData { ... on SensorData { lastCursor } } } } } }",
            s={**selector, "sensorName": sensor},
        )
        data = found["sensorOrError"]["sensorState"]["typeSpecificData"]
        return data["lastCursor"] if data else None

    def terminate(self, run_id: str) -> None:
        """Click on Terminate."""
        self.ask(
            "mutation($id: String!) { terminateRun(runId: $id) { __typename ... on PythonError { message } } }",
            id=run_id,
        )

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/server_info", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False


def until(seconds: float, look: Callable[[], Any], every: float = 0.5) -> Any:
    """What a look finds, once it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(every)
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
