"""The one local engine: found, started once, trusted only by its id. A small process stands in for the engine."""

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import milkrun as mr
from milkrun import local
from milkrun.local import EngineFile

STAND_IN = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from milkrun.local import EngineFile

data_dir = Path(sys.argv[sys.argv.index("--data-dir") + 1])
with (data_dir / "starts").open("a") as file:
    file.write(json.dumps([sys.argv[1:], os.getsid(0) == os.getpid(), os.getcwd()]) + "\\n")
if os.environ.get("STAND_IN") == "broken":
    print("first line")
    sys.exit("no model could be found")
if os.environ.get("STAND_IN") == "in use twice" and len((data_dir / "starts").read_text().splitlines()) < 3:
    sys.exit(75)
me = f"i-{os.getpid()}"

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"status": "ok", "instance_id": me, "version": "0"}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = HTTPServer(("127.0.0.1", 0), Handler)
url = f"http://127.0.0.1:{server.server_port}"
EngineFile(instance_id=me, url=url, api_key="k", pid=os.getpid(), version="0").write(data_dir)
server.serve_forever()
"""


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory whose engine, if one is started, is the stand-in; it is killed at the end."""
    package = tmp_path / "code" / "milkrun_engine"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    yield tmp_path / "data"
    for process in local._children.values():
        process.kill()
        process.wait()
    local._children.clear()


def starts(data_dir: Path) -> list[str]:
    return (data_dir / "starts").read_text().splitlines()


def test_the_file_is_for_its_user_alone_and_hides_the_key(tmp_path: Path) -> None:
    file = EngineFile(instance_id="i", url="http://x", api_key="secret", pid=1, version="0")
    file.write(tmp_path / "data")
    assert file == EngineFile.read(tmp_path / "data")
    assert stat.S_IMODE((tmp_path / "data" / "engine.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["engine.json"]
    assert "secret" not in repr(file)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"url": 1}', "\0"])
def test_a_damaged_file_is_no_engine(tmp_path: Path, content: str) -> None:
    (tmp_path / "engine.json").write_text(content)
    assert local.find(tmp_path) is None


def test_many_clients_start_one_engine(data_dir: Path) -> None:
    found: list[EngineFile] = []
    threads = [threading.Thread(target=lambda: found.append(local.ensure(data_dir))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 5
    assert len(set(found)) == 1
    assert len(starts(data_dir)) == 1
    assert f'["serve", "--local", "--data-dir", "{data_dir}"], true, "{data_dir}"' in starts(data_dir)[0]


def test_only_the_engine_that_wrote_the_file_is_trusted(data_dir: Path) -> None:
    engine = local.ensure(data_dir)
    EngineFile(instance_id="another", url=engine.url, api_key="k", pid=engine.pid, version="0").write(data_dir)
    assert local.find(data_dir) is None


def test_a_killed_engine_is_started_anew_in_mid_use(data_dir: Path) -> None:
    with mr.Milkrun(data_dir=data_dir) as client:
        first = client.health().instance_id
        os.kill(int(first.removeprefix("i-")), signal.SIGKILL)
        assert first != client.health().instance_id
    assert len(starts(data_dir)) == 2


def test_an_engine_that_ends_while_starting_shows_its_last_words(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "broken")
    with pytest.raises(mr.LocalEngineError, match=r"exit code 1\)(.|\n)*first line(.|\n)*no model could be found"):
        local.ensure(data_dir)


def test_an_engine_that_is_just_stopping_is_waited_for(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another engine holds the directory and does not answer: it is asked for until it has gone."""
    monkeypatch.setenv("STAND_IN", "in use twice")
    engine = local.ensure(data_dir)
    assert (3, engine) == (len(starts(data_dir)), local.find(data_dir))


def test_an_engine_that_never_answers_is_stopped(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "find", lambda _: None)
    with pytest.raises(mr.LocalEngineError, match="did not answer in time"):
        local.ensure(data_dir, start_seconds=0.5)
    (process,) = local._children.values()
    assert process.wait(5) == -signal.SIGTERM


def test_without_the_engine_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with mr.Milkrun(data_dir=tmp_path) as client, pytest.raises(mr.LocalEngineError, match="milkrun-engine"):
        client.health()


def test_the_start_lock_is_not_inherited(data_dir: Path) -> None:
    local.ensure(data_dir)
    if sys.platform == "linux":
        import fcntl

        with (data_dir / "start.lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_waiting_for_another_start_has_an_end(data_dir: Path) -> None:
    data_dir.mkdir()
    begun = time.monotonic()
    with local._start_lock(data_dir, begun + 1), pytest.raises(mr.LocalEngineError, match="Another process"):
        local.ensure(data_dir, start_seconds=0.2)
    assert time.monotonic() - begun < 5


def test_the_default_folder(tmp_path: Path) -> None:
    assert tmp_path == local.default_data_dir({"MILKRUN_DATA_DIR": str(tmp_path)})
    assert tmp_path / "milkrun" == local.default_data_dir({"XDG_DATA_HOME": str(tmp_path)})
    assert Path.home() / ".local/share/milkrun" == local.default_data_dir({})
