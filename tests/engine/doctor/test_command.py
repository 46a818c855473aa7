"""
`milkrun doctor` itself, on a new place, beside a running engine, and against one from afar.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stories.server import KEY, Server

Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running engine over echo."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


def doctor(*arguments: str, **environ: str) -> tuple[int, dict[str, Any]]:
    """Its exit code, and its findings by check."""
    done = command("--json", *arguments, **environ)
    found = json.loads(done.stdout)
    assert len(found) == len({finding["check"] for finding in found})
    return done.returncode, {finding["check"]: finding for finding in found}


def command(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    code = "from milkrun._commands import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "doctor", *arguments],
        env={**os.environ, "COLUMNS": "120", **environ}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_new_place_is_well(tmp_path: Path) -> None:
    """Nothing is there yet, nothing is wrong, and nothing was made by looking."""
    code, found = doctor("--data-dir", str(tmp_path / "none"), MILKRUN_REPLICA="echo")
    assert (0, "warning", "warning") == (code, found["ledger"]["level"], found["engine"]["level"])
    assert not (tmp_path / "none").exists()


def test_beside_a_running_engine_all_is_well(server: Server) -> None:
    code, found = doctor("--data-dir", str(server.data_dir), MILKRUN_REPLICA="echo", MILKRUN_ADMIN_KEY=KEY)
    checks = {
        "settings", "packages", "data folder", "blob folder", "memory", "open files", "models", "ledger", "blobs",
        "clock", "address", "public URL", "engine", "ready", "version", "API key", "pools", "callbacks",
    }  # fmt: skip
    assert (0, checks) == (code, set(found))
    important = checks - {"data folder", "blob folder", "memory", "open files"}
    assert [] == [found[check] for check in important if found[check]["level"] != "ok"]
    assert found["engine"]["found"].endswith(server.url)


def test_a_wrong_key_is_exit_code_1(server: Server) -> None:
    code, found = doctor("--data-dir", str(server.data_dir), MILKRUN_REPLICA="echo", MILKRUN_ADMIN_KEY="mk_wrong")
    assert (1, "wrong") == (code, found["API key"]["level"])
    assert "mk_wrong" not in json.dumps(found)


def test_from_afar_a_client_sees_what_it_can(server: Server) -> None:
    code, found = doctor(MILKRUN_URL=server.url, MILKRUN_API_KEY=KEY)
    assert 0 == code
    assert {"packages", "engine", "ready", "version", "clock", "API key", "pools", "callbacks"} == set(found)
    code, found = doctor(MILKRUN_URL="http://127.0.0.1:9", MILKRUN_API_KEY=KEY)
    assert (1, "wrong") == (code, found["engine"]["level"])


def test_broken_places_are_told(tmp_path: Path) -> None:
    """A ledger that is none, a models.yaml that is no YAML, a database that is away, a variable that is no number."""
    (tmp_path / "milkrun.db").write_text("this is no database, and long enough to be taken for one" * 100)
    (tmp_path / "models.yaml").write_text("models: [")
    code, found = doctor(
        "--data-dir", str(tmp_path), MILKRUN_MODELS=str(tmp_path / "models.yaml"), MILKRUN_POOL="local"
    )
    assert (1, "wrong", "wrong") == (code, found["ledger"]["level"], found["models"]["level"])
    away = "postgresql://nobody:canary@127.0.0.1:9/none"
    code, found = doctor(
        "--data-dir", str(tmp_path), MILKRUN_DATABASE_URL=away, MILKRUN_ADMIN_KEY=KEY, MILKRUN_REPLICA="echo"
    )
    assert (1, "wrong") == (code, found["ledger"]["level"])
    assert "canary" not in json.dumps(found)
    code, found = doctor("--data-dir", str(tmp_path), MILKRUN_PORT="many")
    assert (1, {"settings"}) == (code, set(found))


def test_a_person_gets_a_table(server: Server) -> None:
    done = command("--data-dir", str(server.data_dir), MILKRUN_REPLICA="echo", MILKRUN_ADMIN_KEY=KEY)
    assert (0, "") == (done.returncode, done.stderr)
    assert all(word in done.stdout for word in ("what to do", "ledger", "nothing wrong"))
    assert max(map(len, done.stdout.splitlines())) <= 120
