"""
A real Prefect for tests, measurements and examples: a server, and the runners or workers of its flows.

It has one folder and one port, and nothing of it remains when the block is left. It is spoken to over HTTP:
Prefect itself is never imported here, because it takes its settings from the process that imports it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

POOL = "processes"
START_SECONDS = 300.0
STOP_SECONDS = 30.0
PATIENCE = 180.0  # a loaded machine starts a flow's process slowly
_FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Prefect:
    """
    One Prefect.

    Args:
        folder: gets its home, its temporary files and a log of each process.
        environ: variables of its processes beside the caller's own, such as the engine's address and key.
        ui: whether it shows its pages.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None, *, ui: bool = False) -> None:
        self.folder = folder
        self.home = folder / "home"
        temporary = folder / "tmp"
        temporary.mkdir()
        self.url = f"http://127.0.0.1:{_free_port()}"
        self.api_url = f"{self.url}/api"
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1",
            "PREFECT_API_URL": self.api_url,
            "PREFECT_HOME": str(self.home),
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
            "PREFECT_RUNNER_POLL_FREQUENCY": "2",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "TMPDIR": str(temporary),  # a killed runner leaves its storage behind
            **(environ or {}),
        }
        self._ui = ui
        self._commands: dict[str, list[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._http = httpx.Client(base_url=self.api_url, timeout=60.0, trust_env=False)

    def __enter__(self) -> Self:
        port = self.url.rpartition(":")[2]
        pages = [] if self._ui else ["--no-ui"]
        try:
            self.start("server", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port, *pages)
            self.await_server()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._http.close()
        for name in sorted(self._processes, key=lambda name: name == "server"):  # the others say goodbye to it
            self._processes[name].terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes[name].wait(STOP_SECONDS)
        _kill(self._family())
        for process in self._processes.values():
            process.wait(STOP_SECONDS)

    def start(self, name: str, *arguments: str | Path) -> None:
        """Start Python with these arguments, or, without any, what had the name before."""
        if arguments:
            self._commands[name] = [sys.executable, *map(str, arguments)]
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self._commands[name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for whoever started all this
            )

    def await_server(self) -> None:
        """Wait until the server answers."""

        def healthy() -> bool:
            try:
                return self._http.get("/health").is_success
            except httpx.TransportError:
                return False

        until(healthy, "the server's start", START_SECONDS, self.logs)

    def serve(self, script: Path) -> None:
        """Start a script that serves flows."""
        self.start("runner", script)

    def work(self, limit: int) -> None:
        """Start a worker of a process work pool, for so many flow runs at once."""
        options = ("--pool", POOL, "--type", "process", "--limit", str(limit))
        self.start("worker", "-m", "prefect", "worker", "start", *options)
        until(lambda: self._read(f"/work_pools/{POOL}"), "the worker's start", START_SECONDS, self.logs)

    def deploy(self, script: Path, function: str) -> str:
        """Deploy a script's flow to the worker; returns the deployment's name."""
        flow, pull = function.replace("_", "-"), "prefect.deployments.steps.set_working_directory"
        deployment = {
            "name": flow,
            "flow_id": self.call("POST", "/flows/", {"name": flow})["id"],
            "entrypoint": f"{script.name}:{function}",
            "work_pool_name": POOL,
            "pull_steps": [{pull: {"directory": str(script.parent)}}],
            "enforce_parameter_schema": False,
        }
        self.call("POST", "/deployments/", deployment)
        return f"{flow}/{flow}"

    def resume(self, *options: str) -> None:
        """Start a resumer, and wait until it looks."""
        self.start("resumer", "-m", "prefect_milkrun.resumer", *options)
        until(lambda: "looking at" in self._log("resumer").read_text(), "the resumer's start", logs=self.logs)

    def pid(self, name: str) -> int:
        """Of a process that was started."""
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """`kill -9` of a process and of all that it started."""
        process = self._processes.pop(name)
        parent = psutil.Process(process.pid)
        _kill([parent, *parent.children(recursive=True)])
        process.wait(STOP_SECONDS)

    def stop(self, name: str) -> None:
        """End a process politely."""
        process = self._processes.pop(name)
        process.terminate()
        process.wait(STOP_SECONDS)

    def flow_processes(self, run_id: str | None = None) -> list[psutil.Process]:
        """The processes that run flows, or this one flow run."""
        return [
            each
            for each in self._family()
            if (found := _environ(each).get("PREFECT__FLOW_RUN_ID")) and run_id in (None, found)
        ]

    def kill_flow(self, run_id: str) -> None:
        """`kill -9` of a flow run's process."""
        _kill(self.flow_processes(run_id))

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the server's API."""

        def answered() -> httpx.Response | None:
            answer = self._http.request(method, path, json=body)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer  # its SQLite is locked

        answer = until(answered, f"an answer to {method} {path}", logs=self.logs)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def trigger(self, deployment: str, **parameters: Any) -> str:
        """Create a run of a deployment as soon as that is known; returns the run's id."""
        path = f"/deployments/name/{deployment}"
        found = until(lambda: self._read(path), f"the deployment {deployment}", logs=self.logs)
        run = self.call("POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def runs(self, run_ids: Iterable[str]) -> list[dict[str, Any]]:
        """Flow runs as they stand, two hundred at most."""
        return self.call("POST", "/flow_runs/filter", {"flow_runs": {"id": {"any_": list(run_ids)}}})

    def run(self, run_id: str) -> dict[str, Any]:
        """A flow run as it stands."""
        return self.call("GET", f"/flow_runs/{run_id}")

    def await_state(self, run_id: str, *names: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait until a run is in one of the states."""
        return self.await_states([run_id], *names, seconds=seconds)[0]

    def await_states(self, run_ids: Iterable[str], *names: str, seconds: float = PATIENCE) -> list[dict[str, Any]]:
        """Wait until each run is in one of the states; one that ended otherwise will never get there."""
        wanted = list(run_ids)

        def there() -> list[dict[str, Any]] | None:
            runs = self.runs(wanted)
            for run in runs:
                over = run["state_type"] in _FINAL and run["state_name"] not in names
                assert not over, f"run {run['id']} is {run['state_name']}: {run['state']['message']}\n{self.logs()}"
            return runs if all(run["state_name"] in names for run in runs) else None

        return until(there, f"{'/'.join(names)} of {len(wanted)} runs", seconds, self.logs)

    def state_names(self, run_id: str) -> list[str]:
        """All states of a run, in order."""
        states = self.call("GET", f"/flow_run_states/?flow_run_id={run_id}")
        return [state["name"] for state in sorted(states, key=lambda state: state["timestamp"])]

    def set_state(self, run_id: str, state: str, name: str | None = None) -> None:
        """Do what a user's click does: the state is SCHEDULED, CANCELLING, CRASHED, …"""
        body = {"state": {"type": state, "name": name}, "force": state != "CANCELLING"}
        self.call("POST", f"/flow_runs/{run_id}/set_state", body)

    def artifacts(self, run_id: str) -> list[dict[str, Any]]:
        """What the run's page shows."""
        return self.call("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})

    def logs(self) -> str:
        """The end of every process's log."""
        ends = [(path.name, path.read_text(errors="replace")[-3000:]) for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(f"=== {name}\n{end}" for name, end in ends)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _read(self, path: str) -> Any:
        """What is there by now, or None."""
        answer = self._http.get(path)
        if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.SERVICE_UNAVAILABLE):
            return None
        answer.raise_for_status()
        return answer.json()

    def _family(self) -> list[psutil.Process]:
        """Whatever belongs to this Prefect, orphans too."""
        return [each for each in psutil.process_iter() if _environ(each).get("PREFECT_HOME") == str(self.home)]


def until(question: Callable[[], Any], what: str, seconds: float = PATIENCE, logs: Callable[[], str] = str) -> Any:
    """Ask again and again until the answer is yes."""
    give_up = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < give_up, f"{what} did not happen within {seconds:.0f} s\n{logs()}"
        time.sleep(0.25)
    return answer


def _kill(processes: Iterable[psutil.Process]) -> None:
    family = list(processes)
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)  # psutil refuses another process that got the same number
    psutil.wait_procs(family, STOP_SECONDS)


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
