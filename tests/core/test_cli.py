"""The command `milkrun`: data on stdout, words on stderr, documented exit codes."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

import milkrun as mr
from milkrun import _callback_commands, _commands, wire


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def milkrun(engine: Any, build: Any, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any) -> Callable[..., Ran]:
    """Run the command against the scripted engine."""

    def client(url: str | None, data_dir: Path | None) -> mr.Milkrun:
        found = mr.Milkrun(url or build.url, data_dir=data_dir, transport=httpx.MockTransport(engine))
        found._driver.sleep = lambda _: None
        return found

    monkeypatch.setattr(_commands, "Milkrun", client)
    monkeypatch.setattr(_callback_commands, "Milkrun", client)
    monkeypatch.setattr(_commands, "_add_plugins", lambda: None)

    def run(*args: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["milkrun", *args])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            _commands.main()
        out, err = capsysbinary.readouterr()
        return Ran(int(ended.value.code or 0), out.decode(), err.decode())

    return run


def test_submit_prints_the_id_alone(milkrun: Any, engine: Any, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("text\nhello\n")
    ran = milkrun(
        "submit", str(tmp_path / "r.csv"), "--prompt", "Say {text}", "--choices", "yes, no", "--priority", "0",
        "--label", "team=x", "--name", "n", "--key-column", "text", "--model", "m",
    )  # fmt: skip
    assert (ran.code, ran.out, ran.err) == (0, "job_1\n", "")
    sent = engine.sent()
    assert sent["spec"]["output_schema"] == {"choices": ["yes", "no"]}
    assert (sent["labels"], sent["priority"], sent["name"]) == ({"team": "x"}, 0, "n")


def test_submit_reads_json_lines_as_bytes(milkrun: Any, engine: Any) -> None:
    ran = milkrun("submit", "-", "--json", stdin='"a\u2028b"\n\n{"text": "c"}\n'.encode())
    assert json.loads(ran.out)["job"]["id"] == "job_1"
    assert engine.sent()["rows"] == ["a\u2028b", {"text": "c"}]
    ran = milkrun("submit", "-", stdin=b"hello\n")
    assert (
        ran.code,
        ran.err,
    ) == (2, "milkrun: line 1 of the input is no JSON: Expecting value: line 1 column 1 (char 0)\n")


def test_submit_can_wait_and_save(milkrun: Any, engine: Any, build: Any, tmp_path: Path) -> None:
    engine.feed = [wire.Changes(jobs=[build.job(status="succeeded", rows_done=3)], cursor="c1")]
    engine.exports = {"csv": b"index,output\n"}
    engine.jobs = {"job_1": build.job(status="succeeded", rows_done=3)}
    (tmp_path / "s.json").write_text('{"type": "object"}')
    ran = milkrun(
        "submit", "-", "--schema", str(tmp_path / "s.json"), "-o", str(tmp_path / "o.csv"), "--json", stdin=b'"a"\n'
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["status"] == "succeeded"
    assert (tmp_path / "o.csv").read_bytes() == b"index,output\n"


def test_retry_prints_the_new_id_alone(milkrun: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job(status="succeeded", rows_failed=1)
    ran = milkrun("retry", "job_1", "--priority", "0", "--name", "n", "--label", "team=x")
    assert (ran.code, ran.out, ran.err) == (0, "job_2\n", "")
    sent = engine.sent(0)
    assert ({"team": "x"}, 0, "n") == (sent["labels"], sent["priority"], sent["name"])
    assert {"submission_id"} == set((milkrun("retry", "job_1"), engine.sent(-2))[1]), "all else is the ended job's"
    assert "job_1" == json.loads(milkrun("retry", "job_1", "--json").out)["rows_from"]


def test_retry_can_wait_and_save(milkrun: Any, engine: Any, build: Any, tmp_path: Path) -> None:
    engine.jobs["job_1"] = build.job(status="succeeded", rows_failed=1)
    engine.exports = {"csv": b"index,output\n"}
    ran = milkrun("retry", "job_1", "-o", str(tmp_path / "o.csv"), "--json")
    assert ran.code == 0, ran.err
    assert "job_2" == json.loads(ran.out)["id"]
    assert (tmp_path / "o.csv").read_bytes() == b"index,output\n"


def test_a_job_that_ended_badly_is_exit_code_3(milkrun: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job(status="cancelled")
    ran = milkrun("wait", "job_1", "--json")
    assert (ran.code, json.loads(ran.out)["status"]) == (3, "cancelled")
    assert "milkrun: Job job_1 (0 of 3 rows done) was cancelled." in ran.err


def test_a_wait_that_timed_out_is_exit_code_4(milkrun: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job()
    ran = milkrun("wait", "job_1", "--timeout", "0")
    assert (ran.code, ran.out) == (4, "")
    assert "It goes on" in ran.err


def test_errors_are_one_line_and_exit_code_1(milkrun: Any) -> None:
    ran = milkrun("status", "job_9")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith("milkrun: because of not_found (job job_9) [404 not_found, request req_1].")


@pytest.mark.parametrize(
    "args",
    [
        ["submit", "-", "--choices", "a", "--schema", "x"],
        ["submit", "-", "--label", "novalue"],
        ["submit", "book.xlsx"],
        ["jobs", "--status", "unheard"],
        ["unheard"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(milkrun: Any, args: list[str]) -> None:
    assert milkrun(*args).code == 2


def test_status_jobs_and_cancel(milkrun: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job(name="nightly")
    assert "job_id                  job_1\n" in milkrun("status", "job_1").out
    assert json.loads(milkrun("status", "job_1", "--json").out)["id"] == "job_1"
    assert "nightly" in milkrun("jobs", "--label", "a=b").out
    assert [job["id"] for job in json.loads(milkrun("jobs", "--json").out)] == ["job_1"]
    assert milkrun("cancel", "job_1", "--claim", "3").code == 0
    assert engine.sent() == {"claim": 3}


def test_callbacks_are_listed_and_sent_again(milkrun: Any, engine: Any) -> None:
    callback = wire.CallbackInfo(
        id="callback_1", job_id="job_1", kind="generic", receiver="http://[::1]:80", state="given_up", attempts=10,
        created_at=datetime(2026, 1, 2, tzinfo=UTC), last_error="it answered 500",
    )  # fmt: skip
    listed = httpx.Response(200, content=wire.CallbackList(callbacks=[callback]).model_dump_json())
    engine.faults = [listed, listed]
    shown = milkrun("callbacks").out
    assert all(word in shown for word in ("callback_1", "http://[::1]:80", "it answered 500"))
    assert "given_up" == engine.requests[-1].url.params["state"]
    assert ["callback_1"] == [each["id"] for each in json.loads(milkrun("callbacks", "--json").out)]
    engine.faults = [
        httpx.Response(200, content=callback.model_dump_json()),
        httpx.Response(200, json={"callbacks": 2}),
    ]
    assert "callback_1 is sent again\n" == milkrun("callbacks", "replay", "callback_1").out
    assert "2 callbacks are sent again\n" == milkrun("callbacks", "replay", "--receiver", "http://[::1]:80").out
    assert 2 == milkrun("callbacks", "replay").code


def test_results_are_shown_streamed_or_saved(milkrun: Any, engine: Any, build: Any, tmp_path: Path) -> None:
    engine.jobs["job_1"] = build.job(status="succeeded")
    engine.rows = [build.row(0, "fine"), build.row(1, [1.0]), build.row(2, code="timeout")]
    engine.exports = {"jsonl": '{"output":"a\u2028"}\n'.encode(), "csv": b"index\n"}
    shown = milkrun("results", "job_1")
    assert all(word in shown.out for word in ("fine", "[1.0]", "timeout"))
    assert engine.exports["jsonl"].decode() == milkrun("results", "job_1", "--json").out
    assert milkrun("results", "job_1", "--format", "csv").out == "index\n"
    assert "3 rows in" in milkrun("results", "job_1", "-o", str(tmp_path / "o.txt"), "--format", "csv").out
    assert (tmp_path / "o.txt").read_bytes() == b"index\n"


def test_names_and_keys_are_shown_as_they_are(milkrun: Any, engine: Any, build: Any) -> None:
    """Square brackets are markup to the library that draws tables."""
    engine.jobs["job_1"] = build.job(status="succeeded", name="[/n] [b]old")
    engine.rows = [build.row(0, "[/x]", key="[b]ook")]
    assert all(word in milkrun("jobs").out for word in ("[/n]", "[b]old"))
    assert all(word in milkrun("results", "job_1").out for word in ("[b]ook", "[/x]"))


def test_saving_says_where_in_json_too(milkrun: Any, engine: Any, build: Any, tmp_path: Path) -> None:
    engine.jobs["job_1"] = build.job(status="succeeded")
    engine.rows = [build.row(0)]
    engine.exports = {"csv": b"index\n"}
    path = str(tmp_path / "o.csv")
    assert {"rows": 1, "path": path} == json.loads(milkrun("results", "job_1", "-o", path, "--json").out)


def test_what_can_not_be_written_is_refused_before_the_work(milkrun: Any, engine: Any, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("text\nhello\n")
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "list.json").write_text("[]")
    rows = str(tmp_path / "r.csv")
    for args in (
        ("submit", rows, "--output", "out.docx"),
        ("wait", "job_1", "--output", "out.docx"),
        ("results", "job_1", "--json", "--format", "csv"),
        ("submit", rows, "--schema", str(tmp_path / "broken.json")),
        ("submit", rows, "--schema", str(tmp_path / "list.json")),
    ):
        ran = milkrun(*args)
        assert (2, "") == (ran.code, ran.out)
        assert all("Traceback" not in line for line in ran.err.splitlines())
        if "--schema" in args:
            assert f"{args[-1]} holds no JSON schema" in ran.err
    ran = milkrun("submit", rows, "--output", str(tmp_path / "none" / "o.csv"))
    assert (1, "") == (ran.code, ran.out)
    assert "there is no folder" in ran.err
    assert engine.requests == []


def test_other_distributions_add_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = typer.Typer()
    plugin.command("brew")(lambda: typer.echo("brewing"))

    class Entry:
        value = "plugin:app"

        def __init__(self, loaded: Any) -> None:
            self.loaded = loaded

        def load(self) -> Any:
            if isinstance(self.loaded, Exception):
                raise self.loaded
            return self.loaded

    monkeypatch.setattr(_commands, "entry_points", lambda group: [Entry(ImportError("broken")), Entry(plugin)])
    monkeypatch.setattr(_commands.app, "registered_commands", [*_commands.app.registered_commands])
    monkeypatch.setattr(sys, "argv", ["milkrun", "brew"])
    with pytest.raises(SystemExit) as ended:
        _commands.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (0, "brewing\n")
    assert "plugin:app could not be loaded: broken" in " ".join(err.split())


def test_version_needs_no_command(milkrun: Any) -> None:
    assert milkrun("--version").out.strip().count(".") == 2


def test_help_documents_the_exit_codes(milkrun: Any) -> None:
    text = " ".join(milkrun("--help").out.split())
    assert "3 the job failed, was cancelled or expired, 4 the wait timed out" in text
    readme = (Path(__file__).parents[2] / "core" / "README.md").read_text()
    assert all(f"| {code} | " in readme for code in range(5))


def test_without_its_libraries_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from milkrun._cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, 'The milkrun command needs typer and rich: pip install "milkrun[cli]"\n')
