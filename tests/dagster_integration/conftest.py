"""
One real engine with the echo replica for all tests here, and Dagster with a home of its own.
"""

import atexit
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# Before Dagster is imported: its home, and no telemetry.
_home = tempfile.mkdtemp(prefix="milkrun-dagster-")
atexit.register(shutil.rmtree, _home, ignore_errors=True)
(Path(_home) / "dagster.yaml").touch()
os.environ["DAGSTER_HOME"] = _home
os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"

import dagster as dg  # noqa: E402

import milkrun as mr  # noqa: E402
from dagster_milkrun import MilkrunResource, milkrun_defs  # noqa: E402
from milkrun import local  # noqa: E402

#: Dagster 1.13 warns about itself.
_WARNINGS = (
    "ignore::dagster.BetaWarning",
    "ignore::dagster.PreviewWarning",
    "ignore::DeprecationWarning:dagster.*",
    "ignore::DeprecationWarning:dagster_polars.*",
    "ignore::ResourceWarning:dagster.*",
    # Its SQLite storages leave connections to their garbage collection; pytest reports those anywhere.
    "ignore:unclosed database:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Forgive the tests of this folder what is Dagster's own."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for warning in _WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))
            item.add_marker(pytest.mark.engine)


@pytest.fixture
def client(engine: local.EngineFile) -> Iterator[mr.Milkrun]:
    """What a person at the engine sees."""
    with mr.Milkrun(engine.url, engine.api_key, local=False) as found:
        yield found


@dataclass
class Story:
    """One Dagster deployment, driven by hand: its runs in this process, its sensors tick by tick."""

    instance: dg.DagsterInstance
    resource: MilkrunResource
    client: mr.Milkrun
    defs: dg.Definitions = field(default_factory=dg.Definitions)
    cursor: str | None = None

    def of(self, *assets: Any, **more: Any) -> "Story":
        """Define what there is."""
        self.defs = dg.Definitions.merge(
            dg.Definitions(assets=assets, executor=dg.in_process_executor, **more), milkrun_defs(self.resource)
        )
        self.tick()  # a sensor that runs before the first job
        return self

    def run(
        self,
        *keys: Any,
        tags: dict[str, str] | None = None,
        config: Any = None,
        partition: str | None = None,
        job: str | None = None,
        fails: bool = False,
    ) -> dg.ExecuteInProcessResult:
        """Run assets in this process, deferred as under a code location."""
        chosen = self.defs.resolve_job_def(job) if job else self.defs.resolve_implicit_global_asset_job_def()
        return chosen.execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey.from_coercible(key) for key in keys] or None,
            tags={"milkrun/mode": "deferred", **(tags or {})},
            partition_key=partition,
            run_config=config,
            raise_on_error=not fails,
        )

    def evaluate(self, name: str = "milkrun_completion") -> Any:
        """One tick of a sensor."""
        with dg.build_sensor_context(
            instance=self.instance,
            definitions=self.defs,
            resources={"milkrun": self.resource},
            cursor=self.cursor if name == "milkrun_completion" else None,
        ) as context:
            found = self.defs.resolve_sensor_def(name).evaluate_tick(context)
        if name == "milkrun_completion":
            self.cursor = found.cursor
        return found

    def tick(self) -> list[dg.RunRequest]:
        """What the completion sensor asks for."""
        return list(self.evaluate().run_requests or ())

    def look_at_all_jobs(self) -> None:
        """Let the next tick read jobs by id too, as it does every ten minutes."""
        self.cursor = json.dumps({**json.loads(self.cursor or "{}"), "read_at": 0.0})

    def answer(self, request: dg.RunRequest, **options: Any) -> dg.ExecuteInProcessResult:
        """Start the run that a sensor asked for."""
        return self.run(*(request.asset_selection or ()), tags=dict(request.tags), **options)

    def submitted(self, run: dg.ExecuteInProcessResult, op: str) -> str:
        """The job that a run noted on itself."""
        record = self.instance.get_run_by_id(run.run_id)
        assert record is not None
        return record.tags[f"milkrun/submitted/{op}"].split()[0]

    def ended(self, run: dg.ExecuteInProcessResult, op: str) -> mr.Job:
        """The job that a run submitted, once it has ended."""
        return self.client.wait(self.submitted(run, op), timeout=60)

    def materialize(self, *keys: Any, op: str, **options: Any) -> dg.ExecuteInProcessResult:
        """Both phases, with the job's end between them."""
        self.ended(self.run(*keys, **options), op)
        requests = self.tick()
        assert len(requests) == 1
        return self.answer(requests[0], fails=options.get("fails", False))

    def last(self, key: Any) -> dg.AssetMaterialization | None:
        """What was materialized last."""
        event = self.instance.get_latest_materialization_event(dg.AssetKey.from_coercible(key))
        return event.asset_materialization if event else None


@pytest.fixture
def tell(engine: local.EngineFile, client: mr.Milkrun) -> Iterator[Callable[..., Story]]:
    """Make deployments."""
    opened = contextlib.ExitStack()

    def make(assets: Sequence[Any] = (), deployment: str | None = None, *, on_disk: bool = False, **more: Any) -> Story:
        instance = dg.instance_for_test() if on_disk else dg.DagsterInstance.ephemeral()
        resource = MilkrunResource(
            url=engine.url, api_key=engine.api_key, deployment=deployment, webserver_url="http://dagster.test/"
        )
        return Story(opened.enter_context(instance), resource, client).of(*assets, **more)

    with opened:
        yield make
