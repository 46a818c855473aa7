"""
Each of the doctor's checks: well, and broken in every way that it knows.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from milkrun.wire import CallbackInfo, Health, ModelInfo
from milkrun_engine.dispatch.agreement import DECLARED
from milkrun_engine.doctor import engine, host, ledger
from milkrun_engine.doctor.findings import Finding
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.settings import EngineSettings

GIB = host.GIB
VERSIONS = {"milkrun": "1", "milkrun-engine": "1", "ray": None}
ECHO = ModelSpec(name="echo", weights="", replica="echo")
TOLD: dict[str, Any] = {"echo": {"state": "ready", DECLARED: ECHO.fingerprint}}
GIVEN_UP = CallbackInfo(
    id="callback_1", job_id="job_1", kind="generic", receiver="http://a.test", state="given_up", attempts=10,
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
)  # fmt: skip


def weights(text: str) -> list[ModelSpec]:
    return [ModelSpec(name="m", weights=text)]


def pool(state: str) -> list[ModelInfo]:
    return [ModelInfo(name="m", kind="generate", state=state, detail="no memory")]


@pytest.mark.parametrize(
    ("level", "words", "finding"),
    [
        ("ok", "milkrun 1", host.packages((3, 11), VERSIONS, [])),
        ("wrong", "3.11 or newer", host.packages((3, 10), VERSIONS, [])),
        ("wrong", "milkrun-engine[ray]", host.packages((3, 11), VERSIONS, ["ray"])),
        ("wrong", "one version", host.packages((3, 11), VERSIONS | {"milkrun": "2"}, [])),
        ("warning", "not there yet", host.folder("data folder", Path("none"), None)),
        ("ok", "23.0 GiB available", host.memory(23 * GIB, 8 * GIB, uses_ray=True)),
        ("wrong", "--shm-size", host.memory(23 * GIB, GIB // 16, uses_ray=True)),
        ("wrong", "--shm-size", host.memory(23 * GIB, None, uses_ray=True)),
        ("ok", "no /dev/shm", host.memory(23 * GIB, None, uses_ray=False)),
        ("warning", "any size needs more", host.memory(GIB, 8 * GIB, uses_ray=True)),
        ("ok", "65,536", host.descriptors(65_536)),
        ("warning", "ulimit", host.descriptors(1_024)),
        ("ok", "this host alone", host.addresses(["127.0.0.1", "::1"], None)),
        ("warning", "MILKRUN_PUBLIC_URL=https://", host.addresses(["127.0.0.1", "0.0.0.0"], None)),
        ("warning", "without TLS", host.addresses(["0.0.0.0"], "http://a.test")),
        ("ok", "behind https://a.test", host.addresses(["0.0.0.0"], "https://a.test")),
        ("ok", "nobody else", host.public_url(["127.0.0.1"], None)),
        ("ok", "https://a.test", host.public_url(["0.0.0.0"], "https://a.test")),
        ("warning", "set MILKRUN_PUBLIC_URL", host.public_url(["0.0.0.0"], None)),
        ("ok", "SQLite", host.settings(EngineSettings(data_dir=Path("d")))),
        ("wrong", "MILKRUN_PORT", host.settings("MILKRUN_PORT must be a number")),
        ("ok", "at migration 2", ledger.ledger("2", "2", ["1", "2"])),
        ("warning", "migrates it", ledger.ledger("1", "2", ["1", "2"])),
        ("wrong", "newer version", ledger.ledger("3", "2", ["1", "2"])),
        ("warning", "none yet", ledger.ledger(None, "2", ["2"])),
        ("wrong", "MILKRUN_DATABASE_URL", ledger.ledger(None, "2", ["2"], error="OperationalError")),
        ("ok", "this ledger's", ledger.blobs(Path("b"), "one", "one", has_marked=True, restoring=False)),
        ("ok", "not marked yet", ledger.blobs(Path("b"), "one", None, has_marked=False, restoring=False)),
        ("ok", "nobody's", ledger.blobs(Path("b"), None, None, has_marked=False, restoring=False)),
        ("wrong", "another ledger's", ledger.blobs(Path("b"), "one", "two", has_marked=True, restoring=False)),
        ("wrong", "mount it", ledger.blobs(Path("b"), "one", None, has_marked=True, restoring=False)),
        ("wrong", "milkrun restore", ledger.blobs(Path("b"), None, None, has_marked=False, restoring=True)),
        ("ok", "echo", ledger.models([ECHO])),
        ("wrong", "is not valid YAML", ledger.models("models.yaml is not valid YAML")),
        ("wrong", "no weights of m", ledger.models(weights("package:none-of-that-name"))),
        ("wrong", "no weights of m", ledger.models(weights("/nowhere/at/all"))),
        ("ok", "package", ledger.models([ModelSpec(name="package", weights="package:httpx")])),
        ("ok", "model hub", ledger.models(weights("Qwen/Qwen3-8B"))),
        ("ok", "as the dispatching", ledger.same_models([ECHO], TOLD)),
        ("ok", "nobody dispatches", ledger.same_models([ECHO], {})),
        ("warning", "it lacks m", ledger.same_models([ECHO, *weights("a")], TOLD)),
        ("warning", "only it has echo", ledger.same_models([], TOLD)),
        ("warning", "echo otherwise", ledger.same_models([ECHO], {"echo": {DECLARED: "other"}})),
        ("ok", "0.4 s before", ledger.clock(0.4, "the database's")),
        ("warning", "9.0 s behind", ledger.clock(-9, "the database's")),
        ("ok", "none given up", ledger.given_up([], 10)),
        ("warning", "1 given up (http://a.test)", ledger.given_up([GIVEN_UP], 10)),
        ("warning", "1 or more", ledger.given_up([GIVEN_UP], 1)),
        ("ok", "answers", engine.running("u", Health(status="ready", instance_id="i", version="1"), "", is_local=True)),
        ("warning", "milkrun serve", engine.running("d", None, "", is_local=True)),
        ("wrong", "MILKRUN_URL", engine.running("u", None, "ConnectError", is_local=False)),
        ("ok", "takes jobs", engine.ready(Health(status="ready", instance_id="i", version="1"))),
        ("wrong", "is not ready", engine.ready(Health(status="not ready", instance_id="i", version="1"))),
        ("ok", "as here", engine.version("1", "1")),
        ("warning", "the engine is 2", engine.version("1", "2")),
        ("ok", "let in", engine.key(None)),
        ("wrong", "MILKRUN_API_KEY", engine.key("not known here")),
        ("ok", "m stopped", engine.pools(pool("stopped"))),
        ("wrong", "no memory", engine.pools(pool("failing"))),
    ],
)  # fmt: skip
def test_a_check(level: str, words: str, finding: Finding) -> None:
    """It says how bad it is, what it found and, where something is to be done, what."""
    assert (level, True) == (finding.level, words in f"{finding.found} {finding.do}"), finding
    assert (finding.level == "ok") == (not finding.do)


def test_a_folder_is_written_to(tmp_path: Path) -> None:
    assert "ok" == host.folder("data folder", tmp_path, 99 * GIB).level
    assert "warning" == host.folder("data folder", tmp_path, 5 * GIB).level
    assert "wrong" == host.folder("data folder", tmp_path, GIB // 2).level
    assert [] == list(tmp_path.iterdir())
    read_only = Path("/proc/1")
    assert "can't be written" in host.folder("data folder", read_only, 99 * GIB).found


def test_a_models_fingerprint_is_of_all_that_it_declares() -> None:
    assert ECHO.fingerprint == ModelSpec(name="echo", weights="", replica="echo").fingerprint
    assert ECHO.fingerprint != ModelSpec(name="echo", weights="", replica="echo", engine_args={"a": 1}).fingerprint
