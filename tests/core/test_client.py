"""Both clients against a scripted engine: each test runs blocking and awaiting."""

import inspect
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pydantic
import pytest

import milkrun as mr
from milkrun import hashing, wire


class Verdict(pydantic.BaseModel):
    mood: str


def test_a_submit_carries_all_that_was_said(call: Any, engine: Any) -> None:
    job_id = call.method(
        "infer",
        [{"id": "a", "text": "x"}],
        model="m",
        prompt="Say {text}",
        system_prompt="Be brief.",
        sampling={"temperature": 0},
        output_schema=["good", "bad"],
        key_column="id",
        job_priority=0,
        idempotency_key="k",
        reuse="always",
        on_mismatch="replace",
        name="n",
        description="d",
        labels={"team": "x"},
        external_url="https://orchestrator.test/run",
    )
    sent = engine.sent()
    assert job_id == "job_1"
    assert sent.pop("submission_id")
    assert sent == {
        "spec": {
            "model": "m",
            "prompt": "Say {text}",
            "system_prompt": "Be brief.",
            "sampling": {"temperature": 0},
            "output_schema": {"choices": ["good", "bad"]},
            "key_column": "id",
        },
        "priority": 0,
        "idempotency_key": "k",
        "reuse": "always",
        "on_mismatch": "replace",
        "name": "n",
        "description": "d",
        "labels": {"team": "x"},
        "external_url": "https://orchestrator.test/run",
        "rows": [{"id": "a", "text": "x"}],
    }
    assert engine.requests[-1].headers["authorization"] == "Bearer key"


def test_a_retried_submit_is_the_same_submit(call: Any, engine: Any, build: Any) -> None:
    engine.faults = [httpx.ReadTimeout("late"), build.problem(503, "shutting_down", **{"retry-after": "2"})]
    call.method("infer", ["a"])
    assert engine.requests[0].content == engine.requests[1].content == engine.requests[2].content
    assert engine.sent()["idempotency_key"]
    assert engine.sent()["submission_id"]
    assert call.slept[1] == 2.0


def test_a_file_is_not_sent_again_where_its_job_exists(call: Any, engine: Any, build: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'"a"\n')
    engine.jobs["job_1"] = build.job()
    options = {"idempotency_key": "k", "prompt": "Say {text}"}
    submitted = call.method("submit", str(tmp_path / "rows.jsonl"), **options)
    assert ["/api/jobs/attach"] == engine.paths
    spec = wire.JobSpec(prompt="Say {text}")
    assert engine.sent()["input_hash"] == hashing.input_hash(spec, hashing.rows_sha256(["a"]))
    assert (submitted.claim, submitted.reused) == (2, True)


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired", None])
def test_a_file_is_sent_where_its_job_would_not_answer(
    call: Any, engine: Any, build: Any, tmp_path: Path, status: str | None
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'"a"\n')
    if status is not None:
        engine.jobs["job_1"] = build.job(status=status)
    call.method("submit", str(tmp_path / "rows.jsonl"), idempotency_key="k")
    assert ["/api/jobs/attach", "/api/files", "/api/jobs"] == engine.paths


@pytest.mark.parametrize(("allowed", "sent"), [(None, False), (1, False), (0, True)])
def test_a_file_is_sent_where_its_job_has_too_many_failed_rows(
    call: Any, engine: Any, build: Any, tmp_path: Path, allowed: int | None, sent: bool
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'"a"\n')
    engine.jobs["job_1"] = build.job(status="succeeded", rows_failed=1)
    options = {"idempotency_key": "k", "reuse": "failed_rows", "max_failed_rows": allowed}
    call.method("submit", str(tmp_path / "rows.jsonl"), **options)
    assert ["/api/jobs/attach", *(["/api/files", "/api/jobs"] if sent else [])] == engine.paths
    assert engine.sent(0)["input_hash"] is not None, "a job of other rows does not answer"


def test_an_older_engine_runs_all_rows_again(call: Any, engine: Any, build: Any, caplog: Any) -> None:
    """One that does not know `failed_rows` refuses the word; a request that is wrong is refused all the same."""
    engine.faults = [build.problem(422, "invalid_request")]
    options = {"idempotency_key": "k", "reuse": "failed_rows", "max_failed_rows": 3}
    assert "job_1" == call.method("submit", ["a"], **options).job.id
    asked, again = engine.sent(0), engine.sent(1)
    assert {"reuse", "max_failed_rows"} == {*asked} - {*again}
    assert again == {name: asked[name] for name in again}
    assert "until it is upgraded" in caplog.text
    engine.jobs["job_1"] = build.job(status="succeeded", rows_failed=4)
    reused = httpx.Response(
        200, content=wire.Submitted(job=engine.jobs["job_1"], claim=1, cursor="c", reused=True).model_dump_json()
    )
    engine.faults = [build.problem(422, "invalid_request"), reused]
    call.method("submit", ["a"], **options)
    assert "never" == engine.sent()["reuse"], "else the same job would fail its caller for ever"
    engine.faults = [build.problem(422, "invalid_request") for _ in range(2)]
    with pytest.raises(mr.InvalidRequest):
        call.method("submit", ["a"], **options)


def test_a_retry_of_failed_rows_carries_what_was_said(call: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job(status="succeeded", rows_failed=1)
    facts = {"name": "n", "labels": {"a": "b"}, "external_url": "https://a.test"}
    callback = mr.Callback(url="https://receiver.test/")
    assert "job_2" == call.method("retry_failed", "job_1", job_priority=0, callback=callback, **facts)
    sent = engine.sent()
    assert sent.pop("submission_id")
    assert {"priority": 0, "callback": {"url": "https://receiver.test/"}, **facts} == sent
    call.method("retry_failed", "job_1", labels={})
    assert {"submission_id", "labels"} == set(engine.sent())


def test_a_repeated_retry_is_the_same_call(call: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job(status="succeeded", rows_failed=1)
    engine.faults = [httpx.ReadTimeout("late")]
    call.method("retry_failed", "job_1")
    assert engine.requests[0].content == engine.requests[1].content


def test_a_retry_knows_the_schema_of_the_job_that_it_goes_on_with(call: Any, engine: Any, build: Any) -> None:
    call.method("infer", ["a"], output_schema=Verdict)
    call.method("retry_failed", "job_1")
    engine.rows = [build.row(0, '{"mood": "good"}')]
    [row] = call.list(call.method("results", "job_2"))
    assert Verdict(mood="good") == row.parsed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"job_priority": 11}, "job_priority: "),
        ({"external_url": "ftp://x"}, "external_url: "),
        ({"name": 3}, "name: "),
    ],
)
def test_a_wrong_argument_of_a_retry_is_told_by_its_name(call: Any, engine: Any, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call.method("retry_failed", "job_1", **given)
    assert [] == engine.requests


@pytest.mark.parametrize("code", ["not_ended", "nothing_to_retry", "input_deleted"])
def test_a_retry_that_is_refused_says_what_to_do(call: Any, engine: Any, build: Any, code: str) -> None:
    engine.faults = [build.problem(409, code)]
    with pytest.raises(mr.Conflict) as refused:
        call.method("retry_failed", "job_1")
    assert code == refused.value.code
    assert str(refused.value).endswith(("cancel it.", "as they are.", "rows again."))


def test_a_file_without_a_key_of_the_callers_own_is_sent_at_once(call: Any, engine: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'"a"\n')
    call.method("submit", str(tmp_path / "rows.jsonl"))
    call.method("submit", str(tmp_path / "rows.jsonl"), idempotency_key="k", reuse="never")
    assert "/api/jobs/attach" not in engine.paths


def test_a_submit_without_an_answer_says_how_to_go_on(call: Any, engine: Any) -> None:
    engine.faults = [httpx.ReadTimeout("late") for _ in range(9)]
    with pytest.raises(mr.RequestTimeout, match=r"look at jobs\(\) first"):
        call.method("infer", ["a"])


def test_progress_is_told_to_a_function_or_a_coroutine_function(call: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job(status="succeeded")
    told: list[str] = []

    async def tell(job: mr.Job) -> None:
        told.append(job.id)

    call.method("wait", "job_1", on_progress=lambda job: told.append(job.id))
    if isinstance(call.client, mr.AsyncMilkrun):
        call.method("wait", "job_1", on_progress=tell)
        assert told == ["job_1"] * 2
    else:
        with pytest.raises(TypeError, match="plain one"):
            call.method("wait", "job_1", on_progress=tell)


def test_hosts_can_tell_which_methods_are_awaited() -> None:
    for name in ("infer", "submit", "embed"):
        assert inspect.iscoroutinefunction(getattr(mr.AsyncMilkrun, name))
        assert not inspect.iscoroutinefunction(getattr(mr.Milkrun, name))


def test_a_forked_child_talks_on_connections_of_its_own() -> None:
    with mr.Milkrun("http://engine.test") as client:
        parents = client._driver.http
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.write(writer, b"other" if client._driver.http is not parents else b"same")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 10) == b"other"
        assert parents is client._driver.http
        os.close(reader)
        os.close(writer)


def test_a_job_of_a_kind_that_only_a_newer_engine_knows_is_read(call: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job(kind="score")
    assert ("score", mr.JobKind.embed) == (call.method("job", "job_1").kind, build.job(kind="embed").kind)


def test_two_submits_without_a_key_are_two_jobs(call: Any, engine: Any) -> None:
    call.method("infer", ["a"])
    call.method("infer", ["a"])
    assert engine.sent(0)["idempotency_key"] != engine.sent(1)["idempotency_key"]


def test_a_conflict_is_told_at_once(call: Any, engine: Any, build: Any) -> None:
    engine.faults = [build.problem(409, "stale_claim")]
    with pytest.raises(mr.Conflict, match="newer attempt owns the job"):
        call.method("cancel", "job_1", claim=1)
    assert call.slept == []


def test_it_gives_up_after_six_tries(call: Any, engine: Any) -> None:
    engine.faults = [httpx.ConnectError("refused") for _ in range(9)]
    with pytest.raises(mr.ConnectError, match=r"http://engine.test could not be reached: refused. Check that it runs"):
        call.method("health")
    assert len(engine.requests) == 6


def test_large_inputs_are_uploaded_and_survive_a_broken_upload(call: Any, engine: Any) -> None:
    rows = [{"text": "x" * 1_000, "n": n} for n in range(400)]
    engine.faults = [httpx.WriteError("reset")]
    call.method("infer", iter(rows), column="text")
    assert engine.paths == ["/api/files", "/api/files", "/api/jobs"]
    assert rows == [json.loads(line) for line in engine.uploads[0].splitlines()]
    assert engine.sent()["input"] == {"file_id": "file_1"}
    assert engine.sent()["spec"]["prompt"] == "{text}"


@pytest.mark.parametrize("name", ["r.csv", "r.TSV", "r.jsonl", "r.parquet"])
def test_files_go_as_they_are(call: Any, engine: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"any\r\nbytes\xff")
    call.method("infer", str(path))
    assert path.read_bytes() == engine.uploads[0]
    assert path.suffix[1:].lower() == engine.requests[0].url.params["format"]


def test_an_upload_that_arrives_changed_is_not_submitted(call: Any, engine: Any, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"a")
    engine.faults = [httpx.Response(201, json={"id": "f", "format": "csv", "bytes": 1, "sha256": "0" * 64})]
    with pytest.raises(mr.UnexpectedResponse, match="other bytes"):
        call.method("infer", tmp_path / "r.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give the rows once"),
        ({"rows": ["a"], "data": ["a"]}, "give the rows once"),
        ({"rows": "a text"}, "put it in a list"),
        ({"rows": {"a": 1}}, "dict is no list of rows"),
        ({"rows": ["a", 7]}, "row 1 is int"),
        ({"rows": [{"x": float("nan")}]}, "row 0 can't be written as JSON"),
        ({"rows": "book.xlsx"}, "no file that we can read"),
        ({"rows": "https://x.test/a.csv"}, "URLs are not read yet"),
        ({"rows": ["a"], "prompt": "p", "column": "c"}, "not both"),
        ({"rows": ["a"], "column": "a{b"}, "braces"),
        ({"rows": ["a"], "job_priority": 11}, "job_priority: "),
        ({"rows": ["a"], "output_schema": "good"}, "output_schema takes"),
        ({"rows": ["a"], "output_schema": ["a", "a"]}, "a choice twice"),
        ({"rows": ["a"], "reuse": "maybe"}, "reuse: "),
        ({"rows": ["a"], "external_url": "ftp://x"}, "external_url must start"),
    ],
)
def test_a_wrong_argument_is_told_at_the_call(call: Any, engine: Any, options: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call.method("infer", **options)
    assert engine.requests == []


def test_progress_is_told_as_it_moves(call: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job()
    moved, ended = build.job(rows_done=2), build.job(status="succeeded", rows_done=3)
    engine.feed = [
        wire.Changes(jobs=[moved, build.job(id="job_2")], cursor="c1"),
        wire.Changes(jobs=[moved], cursor="c2"),
        wire.Changes(jobs=[ended], cursor="c3"),
    ]
    told: list[int] = []
    call.method("wait", "job_1", on_progress=lambda job: told.append(job.rows_done))
    assert told == [0, 2, 3]
    assert [request.url.params["after"] for request in engine.requests[2:5]] == ["c0", "c1", "c2"]
    assert {"progress"} == {request.url.params["on"] for request in engine.requests[2:5]}


def test_many_jobs_are_awaited_through_few_requests(call: Any, engine: Any, build: Any) -> None:
    ids = [f"job_{n}" for n in range(250)]
    engine.jobs = {each: build.job(id=each) for each in ids}
    engine.jobs["job_7"] = build.job(id="job_7", status="cancelled")
    rest = [build.job(id=each, status="succeeded") for each in ids if each != "job_7"]
    engine.feed = [wire.Changes(jobs=rest[200:], cursor="c1", more=True), wire.Changes(jobs=rest[:200], cursor="c2")]
    ended = call.list(call.client.as_ended([*ids, "job_3"]))
    assert ended[0].id == "job_7"
    assert sorted(ids) == sorted(job.id for job in ended)
    assert len(engine.requests) == 1 + 3 + 2


def test_unknown_jobs_are_named(call: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job()
    with pytest.raises(mr.NotFound, match="job_9"):
        call.list(call.client.as_ended(["job_1", "job_9"]))


def test_jobs_are_paged(call: Any, engine: Any, build: Any) -> None:
    engine.jobs = {f"job_{n}": build.job(id=f"job_{n}") for n in range(120)}
    assert len(call.method("jobs", None, labels={"a": "b"})) == 120
    assert engine.requests[-1].url.params["label.a"] == "b"
    assert len(call.method("jobs", 110)) == 110
    assert call.method("jobs", status="failed") == []


def test_results_are_read_page_by_page(call: Any, engine: Any, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milkrun._results.PAGE_ROWS", 2)
    engine.jobs["job_1"] = build.job(status="succeeded")
    engine.rows = [build.row(0), build.row(1, code="timeout"), build.row(2, "line\u2028line"), build.row(3, [0.5, 1.0])]
    results = call.method("results", "job_1")
    engine.faults = [httpx.ReadError("reset")]
    rows = call.list(results)
    assert 4 == len(results) == len(rows)
    assert [row.text for row in rows] == ["yes", None, "line\u2028line", None]
    assert (rows[1].error.code, rows[1].error.message, rows[1].error.attempts) == ("timeout", "no", 1)
    assert rows[3].output == [0.5, 1.0]
    assert ([row.key for row in rows], rows[0].usage.prompt_tokens) == (["k0", "k1", "k2", "k3"], 3)
    assert "yes" not in repr(rows[0])
    assert rows == call(results.to_list)
    assert call(results.to_dicts)[1]["error_code"] == "timeout"


def test_a_running_jobs_results_stay_as_long_as_they_were(call: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job()
    engine.rows = [build.row(0), build.row(1)]
    results = call.method("results", "job_1")
    engine.rows.append(build.row(2))
    assert [row.index for row in call.list(results)] == [0, 1]


def test_answers_are_parsed_where_the_schema_is_known(call: Any, engine: Any, build: Any) -> None:
    engine.rows = [build.row(0, '{"mood": "good"}'), build.row(1, "{}"), build.row(2, code="truncated")]
    job_id = call.method("infer", ["a", "b", "c"], output_schema=Verdict)
    assert "mood" in engine.sent()["spec"]["output_schema"]["json_schema"]["properties"]
    rows = call.list(call.method("results", job_id))
    assert [Verdict(mood="good"), None, None] == [row.parsed for row in rows]
    rows = call.list(call.method("results", job_id, schema={"type": "object"}))
    assert [row.parsed for row in rows] == [{"mood": "good"}, {}, None]


def test_awaited_results_obey_the_callers_limit(call: Any, engine: Any, build: Any) -> None:
    engine.rows = [build.row(0, code="timeout")]
    engine.jobs["job_1"] = build.job(status="succeeded", rows_failed=1, row_errors={"timeout": 1})
    assert len(call.method("await_job_results", "job_1")) == 1
    with pytest.raises(mr.TooManyRowsFailed, match=r"1 failed rows \(timeout: 1\), 0 are allowed"):
        call.method("await_job_results", "job_1", max_failed_rows=0)
    engine.jobs["job_1"] = build.job(status="cancelled")
    with pytest.raises(mr.JobCancelled):
        call.method("await_job_results", "job_1")


def test_a_saved_file_appears_only_when_it_is_whole(call: Any, engine: Any, build: Any, tmp_path: Path) -> None:
    engine.jobs["job_1"] = build.job(status="succeeded")
    engine.exports = {"jsonl": '{"output":"a\u2028b"}\n'.encode()}
    results = call.method("results", "job_1")
    engine.faults = [httpx.RemoteProtocolError("cut")]
    path = call(results.save, tmp_path / "out.jsonl")
    assert engine.exports["jsonl"] == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())
    engine.faults = [build.problem(404, "not_found")]
    with pytest.raises(mr.NotFound):
        call(results.save, tmp_path / "other.csv")
    assert [path] == list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"known are \.jsonl, \.csv, \.parquet"):
        call(results.save, tmp_path / "out.xlsx")


def test_results_join_a_list_of_dicts(call: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job(status="succeeded")
    engine.rows = [build.row(0), build.row(1, code="timeout")]
    results = call.method("results", "job_1")
    joined = call(results.join, [{"id": "a"}, {"id": "b"}])
    assert [(row["id"], row["output"], row["error"]) for row in joined] == [("a", "yes", None), ("b", None, "timeout")]
    with pytest.raises(ValueError, match="has 1 rows and the results 2"):
        call(results.join, [{"id": "a"}])
    with pytest.raises(ValueError, match="already has output: give a prefix="):
        call(results.join, [{"output": 1}, {}])
    assert call(results.join, [{"output": 1}, {}], prefix="m_")[0]["m_output"] == "yes"


def test_the_small_calls(call: Any, engine: Any, build: Any) -> None:
    engine.jobs["job_1"] = build.job()
    assert engine.jobs["job_1"] == call.method("job", "job_1") == call.method("cancel", "job_1", 3)
    assert engine.sent() == {"claim": 3}
    assert [model.name for model in call.method("models")] == ["echo"]
    assert call.method("health").status == "ok"
    assert call.method("attach", "k", "0" * 64).reused
    assert call.method("changes").cursor == "c0"
    assert call.method("embed", ["a"]) == "job_1"
    assert engine.sent()["spec"]["kind"] == "embed"
    with pytest.raises(TypeError, match="a job id is a non-empty text"):
        call.method("job", None)


def test_an_answer_that_is_not_ours_is_told(call: Any, engine: Any) -> None:
    engine.faults = [httpx.Response(200, html="<h1>Welcome</h1>")]
    with pytest.raises(mr.UnexpectedResponse, match=r"GET http://engine.test/healthz answered 200 \(text/html"):
        call.method("health")


@pytest.mark.parametrize("kind", [mr.Milkrun, mr.AsyncMilkrun])
def test_an_unclosed_client_warns(kind: type[mr.Milkrun]) -> None:
    with pytest.warns(ResourceWarning, match="was not closed"):
        kind("http://engine.test").__del__()


def test_settings_prefer_arguments_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILKRUN_URL", "https://env.test/")
    monkeypatch.setenv("MILKRUN_API_KEY", "env-key")
    with mr.Milkrun() as client:
        assert (client.settings.url, client.settings.api_key) == ("https://env.test", "env-key")
    with mr.Milkrun("http://arg.test", "arg-key") as client:
        assert (client.settings.url, client.settings.api_key) == ("http://arg.test", "arg-key")
    monkeypatch.setenv("MILKRUN_URL", "engine:8000")
    with pytest.raises(ValueError, match="must look like"):
        mr.Milkrun()


def test_without_address_and_local_start_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(mr.LocalEngineError, match="Set MILKRUN_URL"):
        mr.Milkrun(local=False)
    monkeypatch.setenv("MILKRUN_LOCAL", "0")
    with pytest.raises(mr.LocalEngineError):
        mr.AsyncMilkrun()
