"""
A real Prefect server, a real runner that serves flows, and what becomes of their processes.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

import milkrun as mr
from milkrun.local import EngineFile
from prefect_milkrun import MilkrunCredentials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PATIENCE = 180.0  # a loaded machine starts a flow's process slowly
HERE = Path(__file__).parent


@contextmanager
def a_process(arguments: list[str], log: Path, **environ: str) -> Iterator[psutil.Popen]:
    """A process and all its children, gone with the block."""
    with log.open("ab") as out:
        process = psutil.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **environ}, cwd=log.parent
        )
    try:
        yield process
    finally:
        family = [process, *process.children(recursive=True)] if process.is_running() else []
        if family:
            process.send_signal(signal.SIGTERM)
        for left in psutil.wait_procs(family, timeout=30)[1]:
            left.kill()
        psutil.wait_procs(family, timeout=10)


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.25)
    return value


class Stage:
    """Server, runner and engine."""

    def __init__(self, folder: Path, api_url: str, server: SyncPrefectClient, runner: psutil.Popen) -> None:
        self.folder = folder
        self.api_url = api_url
        self.server = server
        self._runner = runner

    def start(self, name: str, **parameters: Any) -> UUID:
        """Create a run of a deployment."""
        deployment = self.server.read_deployment_by_name(name)
        return self.server.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def run(self, run_id: UUID) -> FlowRun:
        return self.server.read_flow_run(run_id)

    def becomes(self, run_id: UUID, *names: str, seconds: float = PATIENCE) -> FlowRun:
        """Wait for one of the states; a run that ended otherwise will never get there."""

        def there() -> FlowRun | None:
            run = self.run(run_id)
            if run.state_name not in names and run.state is not None and run.state.is_final():
                pytest.fail(f"run {run_id} is {run.state_name}: {run.state.message}\n{self.tail()}")
            return run if run.state_name in names else None

        return until(there, f"{'/'.join(names)} of run {run_id}", seconds)

    def state_names(self, run_id: UUID) -> list[str | None]:
        states = self.server.read_flow_run_states(run_id)
        return [state.name for state in sorted(states, key=lambda state: state.timestamp)]

    def flow_processes(self) -> list[psutil.Process]:
        """The runner's children that run flows."""
        children = self._runner.children(recursive=True)
        return [child for child in children if "resource_tracker" not in " ".join(_command(child))]

    def resumer(self) -> Any:
        """A resumer as a process of its own."""
        arguments = [sys.executable, "-m", "prefect_milkrun.resumer", "--block", "engine", "--look-seconds", "2"]
        return a_process(arguments, self.folder / "resumer.log", PREFECT_API_URL=self.api_url)

    def tail(self) -> str:
        return "".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, engine: EngineFile) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api_url = f"http://127.0.0.1:{port}/api"
    environ = {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": api_url,
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
    }
    with ExitStack() as stack:
        prefect = [sys.executable, "-m", "prefect"]
        start = [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
        stack.enter_context(a_process(start, folder / "server.log", **environ))

        def healthy() -> bool:
            try:
                return httpx.get(f"{api_url}/health", timeout=5).is_success
            except httpx.HTTPError:
                return False

        until(healthy, "the server's start", 300)
        stack.enter_context(temporary_settings({PREFECT_API_URL: api_url}))
        block = MilkrunCredentials.model_validate({"base_url": engine.url, "api_key": engine.api_key})
        block.save("engine", overwrite=True)
        uncalled = block.model_copy(update={"prefect_api_url": "http://127.0.0.1:9/api"})  # nobody listens there
        uncalled.save("uncalled", overwrite=True)
        served = [sys.executable, str(HERE / "deployed.py")]
        runner = stack.enter_context(a_process(served, folder / "runner.log", **environ))
        server = stack.enter_context(get_client(sync_client=True))
        stage = Stage(folder, api_url, server, runner)
        until(lambda: len(server.read_deployments()) == 3, "serving")
        yield stage


@pytest.fixture(scope="module")
def resumer(stage: Stage) -> Iterator[None]:
    """From the first test that names it on."""
    with stage.resumer():
        until(lambda: "looking at" in (stage.folder / "resumer.log").read_text(), "the resumer's start")
        yield


def jobs(client: mr.Milkrun, run_id: UUID) -> list[mr.Job]:
    return client.jobs(labels={"prefect_flow_run_id": str(run_id)})


def the_job(client: mr.Milkrun, run_id: UUID) -> mr.Job:
    (job,) = until(lambda: jobs(client, run_id), "the submit")
    return job


def progress(stage: Stage, run_id: UUID) -> float:
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    found = stage.server.read_artifacts(artifact_filter=wanted, limit=200)
    return next(artifact.data for artifact in found if artifact.type == "progress")


def leaves_and_completes(stage: Stage, client: mr.Milkrun, run_id: UUID, left_as: str) -> list[str | None]:
    """The run's process ends while its job runs, and later the run completes with that one job; its states."""
    stage.becomes(run_id, left_as)
    until(lambda: not stage.flow_processes(), "the process's end")
    assert not the_job(client, run_id).is_terminal, "the job was too short for this machine"
    stage.becomes(run_id, "Completed")
    assert mr.JobStatus.succeeded == the_job(client, run_id).status
    return stage.state_names(run_id)


def test_a_suspended_run_holds_no_process_and_the_engine_resumes_it(stage: Stage, client: mr.Milkrun) -> None:
    run_id = stage.start("waits/waits", rows=["quick", "slow:40 last"])
    assert "Resuming" in leaves_and_completes(stage, client, run_id, "Suspended")
    assert 100.0 == progress(stage, run_id)


def test_a_rescheduled_run_needs_nobody(stage: Stage, client: mr.Milkrun) -> None:
    run_id = stage.start("waits/waits", rows=["slow:40 x"], defer="reschedule", reschedule_seconds=20)
    states = leaves_and_completes(stage, client, run_id, "AwaitingMilkrun")
    assert not {"Crashed", "Failed", "Suspended"} & set(states)


def test_a_callback_that_comes_before_the_run_is_suspended_still_resumes_it(stage: Stage, client: mr.Milkrun) -> None:
    run_id = stage.start("waits-late/waits-late", rows=["slow:4 x"])
    stage.becomes(run_id, "Completed")
    assert {"Suspended", "Resuming"} <= set(stage.state_names(run_id))


def test_two_jobs_of_an_async_body(stage: Stage, client: mr.Milkrun) -> None:
    run_id = stage.start("awaits-twice/awaits-twice", rows=["slow:10 a", "b"])
    stage.becomes(run_id, "Completed")
    assert 2 == len(jobs(client, run_id))
    assert "Suspended" in stage.state_names(run_id)


@pytest.mark.usefixtures("resumer")
def test_the_resumer_alone_resumes_a_run_and_moves_its_progress(stage: Stage, client: mr.Milkrun) -> None:
    run_id = stage.start("waits/waits", rows=["slow:40 x"], credentials="uncalled", defer="suspend")
    assert "Resuming" in leaves_and_completes(stage, client, run_id, "Suspended")


@pytest.mark.usefixtures("resumer")
def test_the_resumer_finds_a_run_that_was_suspended_behind_its_jobs_end(stage: Stage, client: mr.Milkrun) -> None:
    run_id = stage.start("waits-late/waits-late", rows=["slow:4 x"], credentials="uncalled")
    stage.becomes(run_id, "Completed")
    assert {"Suspended", "Resuming"} <= set(stage.state_names(run_id))


@pytest.mark.usefixtures("resumer")
def test_a_run_cancelled_while_it_is_suspended_takes_its_job_along(stage: Stage, client: mr.Milkrun) -> None:
    run_id = stage.start("waits/waits", rows=["slow:300 x"])
    stage.becomes(run_id, "Suspended")
    job = the_job(client, run_id)
    stage.server.set_flow_run_state(run_id, Cancelling())
    until(lambda: client.job(job.id).status is mr.JobStatus.cancelled, "the job's end", 10)
    assert "Cancelled" == stage.run(run_id).state_name
