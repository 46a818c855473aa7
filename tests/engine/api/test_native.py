"""
The native API: submit, find, list, wait, cancel and read, as the contract says.
"""

import hashlib
import json
import time
from typing import Any

import anyio
import pytest
from fix_api import POOL, Api

from milkrun import wire
from milkrun.hashing import input_hash, row_line
from milkrun_engine import __version__

pytestmark = pytest.mark.anyio


async def test_a_submit_answers_201_and_its_repeat_200(api: Api) -> None:
    body = {"rows": ["a", "b"], "idempotency_key": "k"}
    first, again = await api.mine.post("/api/jobs", json=body), await api.mine.post("/api/jobs", json=body)
    assert (first.status_code, again.status_code) == (201, 200)
    one, two = wire.Submitted.model_validate(first.json()), wire.Submitted.model_validate(again.json())
    assert one.job.id == two.job.id
    assert (one.reused, two.reused, two.claim > one.claim) == (False, True, True)


async def test_the_client_can_tell_the_input_hash_before_it_sends(api: Api) -> None:
    rows = ["a", {"b": 1}, "\u2028"]
    sha256 = hashlib.sha256(b"".join(map(row_line, rows))).hexdigest()
    expected = input_hash(wire.JobSpec(prompt="{text}"), sha256)
    inline = await api.submit(rows, spec={"prompt": "{text}"})
    assert inline["job"]["input_hash"] == expected
    uploaded = await api.mine.post("/api/files", params={"format": "jsonl"}, content=b"".join(map(row_line, rows)))
    assert uploaded.json()["sha256"] == sha256
    body = {"input": {"file_id": uploaded.json()["id"]}, "spec": {"prompt": "{text}"}}
    assert (await api.mine.post("/api/jobs", json=body)).json()["job"]["input_hash"] == expected


async def test_a_job_tells_all_that_was_given(api: Api) -> None:
    facts = {
        "name": "n", "description": "d", "labels": {"a": "b"}, "external_url": "https://a.test/1", "priority": 3,
        "idempotency_key": "k",
    }  # fmt: skip
    job = (await api.submit(**facts))["job"]
    assert {name: job[name] for name in facts} == facts
    assert (job["status"], job["model"], job["rows_total"]) == ("preparing", POOL, None)
    again = (await api.mine.get(f"/api/jobs/{job['id']}")).json()
    assert again == {**job, "queue": {"jobs_ahead": 0, "rows_ahead": 0, "estimated_seconds": None}}


async def test_an_ended_job_counts_its_rows_and_errors(api: Api) -> None:
    job_id = await api.done(["a", "fail", 3, "b"])
    job = wire.Job.model_validate((await api.mine.get(f"/api/jobs/{job_id}")).json())
    assert (job.status, job.rows_total, job.rows_succeeded, job.rows_failed) == ("succeeded", 4, 2, 2)
    assert job.row_errors == {"invalid_row": 2}
    assert (job.usage.prompt_tokens, job.usage.completion_tokens) == (4, 2)
    assert job.seconds is not None


async def test_results_come_in_pages(api: Api) -> None:
    job_id = await api.done([f"row {number}" for number in range(30)])
    rows: list[dict[str, Any]] = []
    complete = False
    while not complete:
        params = {"after": len(rows) - 1, "limit": 7}
        page = (await api.mine.get(f"/api/jobs/{job_id}/results", params=params)).json()
        rows += page["rows"]
        complete = page["complete"]
    assert [row["index"] for row in rows] == list(range(30))
    assert set(rows[0]) == {
        "index", "key", "status", "output", "error", "finish_reason", "prompt_tokens", "cached_tokens",
        "completion_tokens", "attempts",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("form", "kind"),
    [("jsonl", "application/x-ndjson"), ("csv", "text/csv"), ("parquet", "application/vnd.apache.parquet")],
)
async def test_results_come_as_files(api: Api, form: str, kind: str) -> None:
    job_id = await api.done()
    answer = await api.mine.get(f"/api/jobs/{job_id}/results", params={"format": form})
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}.{form}"'
    assert answer.content


async def test_a_cancel_is_final_and_may_be_repeated(api: Api) -> None:
    job_id = (await api.submit())["job"]["id"]
    api.world.prepare()
    first, again = [(await api.mine.post(f"/api/jobs/{job_id}/cancel")).json() for _ in range(2)]
    assert first == again
    assert (first["status"], first["rows_cancelled"]) == ("cancelled", 3)
    rows = (await api.mine.get(f"/api/jobs/{job_id}/results")).json()
    assert {row["error"]["code"] for row in rows["rows"]} == {"cancelled"}
    assert rows["complete"]


async def test_a_cancel_by_label_answers_the_jobs_that_it_stopped(api: Api) -> None:
    run = [(await api.submit(labels={"run": "1", "number": str(number)}))["job"]["id"] for number in range(3)]
    other = (await api.submit(labels={"run": "2"}))["job"]["id"]
    await api.mine.post(f"/api/jobs/{run.pop()}/cancel")
    answer = await api.mine.post("/api/jobs/cancel", json={"labels": {"run": "1"}})
    assert [(job_id, "cancelled") for job_id in sorted(run)] == [
        (job["id"], job["status"]) for job in answer.json()["jobs"]
    ]
    assert (await api.mine.post("/api/jobs/cancel", json={"labels": {"run": "1"}})).json()["jobs"] == []
    assert (await api.mine.post("/api/jobs/cancel", json={"labels": {}})).status_code == 422
    assert (await api.mine.get(f"/api/jobs/{other}")).json()["status"] == "preparing"


async def test_a_cancel_by_label_goes_on_until_no_such_job_lives(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milkrun_engine.service.jobs._CANCEL_BATCH", 2)
    told: list[str] = []
    api.engine.service._signals.on_stopped(told.append)
    run = [(await api.submit(labels={"run": "1"}))["job"]["id"] for _ in range(5)]
    jobs = (await api.mine.post("/api/jobs/cancel", json={"labels": {"run": "1"}})).json()["jobs"]
    assert sorted(run) == [job["id"] for job in jobs] == told


async def test_lists_go_on_behind_a_job_the_newest_first(api: Api) -> None:
    made = [(await api.submit(labels={"odd": str(number % 2)}))["job"]["id"] for number in range(7)]
    listed, before = [], None
    while True:
        page = (await api.mine.get("/api/jobs", params={"limit": 3} | ({"before": before} if before else {}))).json()
        listed += [job["id"] for job in page["jobs"]]
        if (before := page["next"]) is None:
            break
    assert listed == made[::-1]
    odd = (await api.mine.get("/api/jobs", params={"label.odd": "1"})).json()
    assert [job["id"] for job in odd["jobs"]] == made[5::-2]
    some = (await api.mine.get("/api/jobs", params={"ids": f"{made[2]},job_never,{made[4]}"})).json()
    assert {job["id"] for job in some["jobs"]} == {made[2], made[4]}


async def test_a_waiter_hears_of_a_change_at_once(api: Api) -> None:
    submitted = await api.submit()
    heard: list[dict[str, Any]] = []

    async def wait() -> None:
        answer = await api.mine.get("/api/changes", params={"after": submitted["cursor"], "on": "end", "wait": 30})
        heard.append(answer.json())

    started = time.monotonic()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await api.mine.post(f"/api/jobs/{submitted['job']['id']}/cancel")
    assert time.monotonic() - started < 10
    [job] = heard[0]["jobs"]
    assert (job["id"], job["status"]) == (submitted["job"]["id"], "cancelled")
    assert heard[0]["cursor"] != submitted["cursor"]


async def test_a_stopping_engine_answers_its_waiters(api: Api) -> None:
    cursor = (await api.mine.get("/api/changes")).json()["cursor"]

    async def wait() -> None:
        answer = await api.mine.get("/api/changes", params={"after": cursor, "wait": 60})
        assert answer.json()["jobs"] == []

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            api.engine.refuse()
    assert (await api.mine.get("/readyz")).status_code == 503


async def test_models_tell_their_kind_and_state(api: Api) -> None:
    models = wire.ModelList.model_validate((await api.mine.get("/api/models")).json()).models
    assert {(model.name, model.kind.value, model.is_default) for model in models} == {
        (POOL, "generate", True), ("all-minilm-l6-v2", "embed", True)
    }  # fmt: skip
    assert {model.state for model in models} == {"stopped"}


async def test_health_names_the_instance(api: Api) -> None:
    health = wire.Health.model_validate((await api.nobody.get("/healthz")).json())
    assert (health.status, health.instance_id, health.version) == ("ok", api.engine.instance_id, __version__)


async def test_the_schema_describes_every_route_and_error(api: Api) -> None:
    schema = (await api.nobody.get("/api/openapi.json")).json()
    native = {path: methods for path, methods in schema["paths"].items() if path.startswith("/api")}
    assert len(native) >= 8
    for methods in native.values():
        for operation in methods.values():
            assert operation["summary"]
            assert operation["description"]
            assert "default" in operation["responses"]
    assert not [path for path in schema["paths"] if path.startswith("/jobs")], "pages are no API"
    assert json.dumps(schema)


async def test_an_idle_engine_knows_how_long_it_was_idle(api: Api) -> None:
    await api.mine.get("/api/jobs")
    before = api.engine.activity.idle_seconds
    await api.mine.get("/healthz")
    assert api.engine.activity.idle_seconds >= before, "a probe is no caller"
    assert await api.engine.service.unfinished() == 0
    await api.submit()
    assert await api.engine.service.unfinished() == 1
