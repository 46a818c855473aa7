"""
A real Airflow for tests and examples: scheduler with LocalExecutor, DAG processor, API server, triggerer.

Each is a process group of its own, in one folder, on free ports. Nothing of it remains when the block is left.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from cryptography.fernet import Fernet

BIN = Path(sys.executable).parent
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
START_SECONDS = 240.0
STOP_SECONDS = 30.0


class Components:
    """
    One Airflow.

    Args:
        folder: becomes its home; put DAG files into `folder / "dags"`.
        environ: variables beside its own settings, such as connections.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.dags = folder / "dags"
        self.dags.mkdir(parents=True)
        port, worker_logs, trigger_logs = _free_ports(3)
        self.url = f"http://127.0.0.1:{port}"
        settings = {
            "API__BASE_URL": self.url,  # workers derive the execution API's address from it
            "API__HOST": "127.0.0.1",
            "API__PORT": str(port),
            "API__WORKERS": "1",
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "CORE__DAGBAG_IMPORT_TIMEOUT": "120",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "CORE__DAGS_FOLDER": str(self.dags),
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__FERNET_KEY": Fernet.generate_key().decode(),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__PARALLELISM": "2",
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "CORE__TEST_CONNECTION": "Enabled",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_logs),
            "LOGGING__WORKER_LOG_SERVER_PORT": str(worker_logs),
            "SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "3",
            "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "300",
            "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
            "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "20",
            "WORKERS__EXECUTION_API_TIMEOUT": "120",  # a busy machine is no failure
        }
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
            "AIRFLOW_HOME": str(folder),
            "NO_PROXY": "127.0.0.1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            **environ,
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: dict[int, psutil.Process] = {}
        self._http = httpx.Client(base_url=self.url, timeout=60.0, trust_env=False)

    @contextlib.contextmanager
    def only(self) -> Iterator[None]:
        """Make the database and start nothing by itself; clean up all the same."""
        self._migrate()
        try:
            yield
        finally:
            self.__exit__()

    def __enter__(self) -> Self:
        self._migrate()
        try:
            self.start(*COMPONENTS)
            until(self._is_healthy, START_SECONDS, "all components are healthy", self.logs)
            token = self._http.get("/auth/token").json()["access_token"]
            self._http.headers["Authorization"] = f"Bearer {token}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._http.close()
        self._look()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        self._look()
        for each in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()  # psutil refuses another process that got the same number
        psutil.wait_procs(list(self._seen.values()), STOP_SECONDS)
        for process in self._processes.values():
            process.wait(STOP_SECONDS)

    def _migrate(self) -> None:
        # First the database alone: four processes that begin in an empty home write four configurations.
        subprocess.run([BIN / "airflow", "db", "migrate"], env=self._environ, check=True, capture_output=True)

    def start(self, *names: str) -> None:
        """Start components."""
        for name in names:
            with (self.folder / f"{name}.log").open("ab") as log:
                command = [BIN / "airflow", name]
                self._processes[name] = subprocess.Popen(
                    command, env=self._environ, stdout=log, stderr=log, start_new_session=True
                )

    def kill(self, name: str) -> None:
        """Kill a component and all that it started, without a chance to say goodbye."""
        self._look()
        process = self._processes.pop(name)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(STOP_SECONDS)
        psutil.wait_procs(family, STOP_SECONDS)

    def python(self, script: Path, said: str) -> None:
        """Run a script in this Airflow's environment, with something to read on its input."""
        done = subprocess.run(
            [sys.executable, "-P", script], input=said, env=self._environ, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def usage(self, name: str) -> dict[str, tuple[float, float]]:
        """CPU seconds and proportional memory (MiB) of each process of a component, the first one by its name."""
        top = psutil.Process(self._processes[name].pid)
        found = {}
        for each in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times, title = each.cpu_times(), name if each == top else f"its child {each.pid}"
                found[title] = (times.user + times.system, each.memory_full_info().pss / (1 << 20))
        return found

    def logs(self) -> str:
        """The end of every component's log."""
        ends = [(path.name, path.read_text(errors="replace")[-3000:]) for path in self.folder.glob("*.log")]
        tasks = [
            (str(path), path.read_text(errors="replace")[-3000:]) for path in self.folder.glob("logs/dag_id*/**/*.log")
        ]
        return "\n".join(f"=== {name}\n{end}" for name, end in ends + tasks)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the public API."""
        answer = self._http.request(method, f"/api/v2{path}", json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def trigger(self, dag: str, run: str, conf: Mapping[str, Any] | None = None) -> None:
        """Start a run of a DAG as soon as the DAG is known."""
        body = {"dag_run_id": run, "logical_date": None, "conf": dict(conf or {})}

        def begin() -> bool:
            try:
                self.call("POST", f"/dags/{dag}/dagRuns", body)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.NOT_FOUND:
                    raise
                return False
            return True

        until(begin, 120.0, f"the DAG {dag} is known", self.logs)

    def task(self, dag: str, run: str, task: str = "label") -> dict[str, Any]:
        """The task instance as it stands."""
        return self.call("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}")

    def await_state(
        self, dag: str, run: str, *states: str, at_try: int = 1, seconds: float = 120.0, task: str = "label"
    ) -> dict[str, Any]:
        """Wait until the task is in one of the states, in this try or a later one."""

        def there() -> dict[str, Any] | None:
            seen = self.task(dag, run, task)
            over = seen["state"] in ("success", "failed") and seen["try_number"] >= at_try
            assert not over or seen["state"] in states, f"{dag} is {seen['state']}\n{self.logs()}"
            return seen if seen["state"] in states and seen["try_number"] >= at_try else None

        return until(there, seconds, f"{dag} is {' or '.join(states)} in try {at_try}", self.logs)

    def mark(self, dag: str, run: str, state: str) -> None:
        """Do what a user's click on "mark as" does."""
        self.call("PATCH", f"/dags/{dag}/dagRuns/{run}/taskInstances/label", {"new_state": state})

    def clear(self, dag: str, run: str) -> None:
        """Do what a user's click on "clear" does."""
        body = {"dry_run": False, "dag_run_id": run, "only_failed": False, "task_ids": ["label"]}
        self.call("POST", f"/dags/{dag}/clearTaskInstances", body)

    def returned(self, dag: str, run: str, key: str = "return_value") -> Any:
        """An XCom of the task."""
        return self.call("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances/label/xcomEntries/{key}")["value"]

    def links(self, dag: str, run: str) -> dict[str, str | None]:
        """The buttons of the task's page."""
        answer = self.call("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances/label/links")
        return answer["extra_links"]

    def log(self, dag: str, run: str, at_try: int = 1) -> str:
        """The task's log, as its page shows it."""
        return str(self.call("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances/label/logs/{at_try}?full_content=true"))

    def _is_healthy(self) -> bool:
        try:
            health = self._http.get("/api/v2/monitor/health").json()
        except httpx.TransportError:
            return False
        return all(health[name]["status"] == "healthy" for name in ("scheduler", "dag_processor", "triggerer"))

    def _look(self) -> None:
        """Remember whatever belongs to this Airflow, for the end: some of it leaves its parent's group."""
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if each.environ().get("AIRFLOW_HOME") == str(self.folder):
                    self._seen[each.pid] = each


def until(question: Callable[[], Any], seconds: float, what: str, logs: Callable[[], str]) -> Any:
    """Ask again and again until the answer is yes."""
    give_up = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < give_up, f"not after {seconds:g} s: {what}\n{logs()}"
        time.sleep(0.3)
    return answer


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
