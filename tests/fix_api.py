"""
A whole engine in this process behind httpx, without its duties: a test moves its jobs by hand.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fix_store import NoSync, World

from milkrun_engine.app import Engine
from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.settings import EngineSettings

URL = "http://engine.test"
KEY = "mk_of_the_first_tenant"
OTHER_TENANT, OTHER_KEY = "other", "mk_of_the_other_tenant"
POOL = "smollm2-135m-instruct"


@dataclass
class Api:
    """An engine, a caller of each of its two tenants, and a hand on its ledger."""

    engine: Engine
    world: World
    mine: httpx.AsyncClient
    other: httpx.AsyncClient
    nobody: httpx.AsyncClient
    models: dict[str, ModelSpec] = field(default_factory=dict)

    async def submit(self, rows: Any = ("a", "b", "c"), **facts: Any) -> dict[str, Any]:
        """Submit as the first tenant; returns the answer."""
        answer = await self.mine.post("/api/jobs", json={"rows": list(rows), **facts})
        answer.raise_for_status()
        submitted: dict[str, Any] = answer.json()
        return submitted

    async def done(self, rows: Any = ("a", "b", "c"), **facts: Any) -> str:
        """Submit, prepare and run a job; returns its id."""
        job = (await self.submit(rows, **facts))["job"]
        self.world.prepare()
        self.world.run(job["model"])
        return str(job["id"])


@asynccontextmanager
async def serve(data_dir: Path, *, duties: bool = False, **settings: Any) -> AsyncIterator[Api]:
    """An engine over a data directory; with `duties` it runs its jobs by itself."""
    engine = Engine(EngineSettings(data_dir=data_dir, replica="echo", admin_key=KEY, **settings), URL)
    engine.store.tenants.ensure(OTHER_TENANT)
    engine.store.tenants.add_key(OTHER_KEY, "other", OTHER_TENANT)
    world = World(
        data_dir,
        engine.settings.database_url or data_dir / "milkrun.db",
        engine.store,
        LocalBlobs(data_dir / "blobs", NoSync()),
        models=engine._models,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.stop)
        clients = []
        for key in (KEY, OTHER_KEY, None):
            transport = httpx.ASGITransport(app=engine.app, raise_app_exceptions=False)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            clients.append(
                await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url=URL, headers=headers))
            )
        if duties:
            await engine.start()
            while engine.leadership.crew is None:
                await asyncio.sleep(0.01)
        else:
            engine.leadership.crew = engine.make_crew(term=1)
        yield Api(engine, world, *clients, models=engine._models)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A new engine, its duties at rest."""
    async with serve(tmp_path) as served:
        yield served
