"""
A callback from its submit to its receiver: refused at the door, sent within a second, shown nowhere.
"""

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from fix_api import KEY, Api, serve
from standardwebhooks import Webhook, WebhookVerificationError
from stories.receiver import Receiver, Reply

from milkrun_engine.serve import _stop_when_idle

pytestmark = pytest.mark.anyio
SECRET = "whsec_Y2FuYXJ5IG9mIGEgc2VjcmV0IG9mIGEgdGVzdC4="
HEADERS = {"Authorization": "Bearer canary-of-a-header"}
SECONDS = 3.0  # a tenth of one on a machine that does nothing else


async def ends(api: Api, receiver: Receiver, how: str) -> str:
    """A job with a callback, and its end."""
    callback = {"url": receiver.url, "secret": SECRET}
    rows = {"commit": ["a"], "last window": [3], "cancel": ["slow:30 a"], "cancel by label": ["slow:30 a"]}[how]
    facts = {"labels": {"run": "1"}, "callback": callback}
    job_id = str((await api.submit(rows, **facts))["job"]["id"])
    if how == "cancel":
        await api.mine.post(f"/api/jobs/{job_id}/cancel")
    if how == "cancel by label":
        await api.mine.post("/api/jobs/cancel", json={"labels": {"run": "1"}})
    return job_id


@pytest.mark.parametrize("how", ["commit", "last window", "cancel", "cancel by label"])
async def test_a_receiver_hears_soon_after_the_end(tmp_path: Path, how: str) -> None:
    with Receiver() as receiver:
        async with serve(tmp_path, duties=True) as api:
            job_id = await ends(api, receiver, how)
            [heard] = await asyncio.to_thread(receiver.wait, 1)
            late = time.time() - (await _finished_at(api, job_id)) - (time.monotonic() - heard.at)
    event = Webhook(SECRET).verify(heard.body, heard.headers)
    status = "cancelled" if "cancel" in how else "succeeded"
    assert (f"job.{status}", job_id, status) == (event["type"], event["data"]["id"], event["data"]["status"])
    assert late < SECONDS


async def _finished_at(api: Api, job_id: str) -> float:
    finished = (await asyncio.to_thread(api.world.job, job_id)).finished_at
    assert finished is not None
    return float(finished)


async def test_a_job_that_is_found_again_keeps_its_callback_and_its_inputs_hash(api: Api) -> None:
    """A callback changes no answer: it is not compared."""
    with Receiver() as first, Receiver() as second:
        bodies = [{"url": first.url}, {"url": second.url}, None]
        jobs = [await api.submit(["a"], idempotency_key="k", callback=body) for body in bodies]
        assert 1 == len({job["job"]["id"] for job in jobs})
        assert 1 == len({job["job"]["input_hash"] for job in jobs})
        api.world.prepare()
        api.world.run(jobs[0]["job"]["model"])
        [due] = api.engine.store.callbacks.due(9)
        assert first.url == due.url


@pytest.mark.parametrize(
    ("words", "callback"),
    [
        ("MILKRUN_CALLBACK_PRIVATE", {"url": "http://127.0.0.1:8000/"}),
        ("MILKRUN_CALLBACK_PRIVATE", {"url": "http://localhost/"}),
        ("never called", {"url": "http://169.254.169.254/latest/meta-data"}),
        ("credentials", {"url": "https://me:canary@93.184.215.14/"}),
        ("callback.url", {"url": "https://"}),
        ("callback.secret", {"secret": "whsec_not base64: canary"}),
        ("callback.secret", {"secret": "whsec_Y2FuYXJ5"}),
        ("callback.secret", {"secret": "canary-of-a-secret-long-enough"}),
        ("callback.headers", {"headers": {"canary\n": "x"}}),
        ("callback.headers", {"headers": {"Host": "canary.test"}}),
        ("callback.headers", {"headers": {"Webhook-Id": "canary"}}),
        ("X-Team", {"headers": {"X-Team": "a\r\nX-Canary: canary"}}),
        ("X-Team", {"headers": {"X-Team": "canary \u00e9"}}),
        ("flow_runs", {"kind": "prefect_resume", "url": "https://93.184.215.14/api/flow_runs/1"}),
        ("callback.kind", {"kind": "canary"}),
        ("callback.url", {"url": "ftp://93.184.215.14/canary"}),
    ],
)
async def test_what_could_not_be_sent_is_refused_and_not_quoted(
    tmp_path: Path, words: str, callback: dict[str, Any]
) -> None:
    async with serve(tmp_path, callback_private=False) as api:
        body = {"rows": ["a"], "callback": {"url": "https://93.184.215.14/", **callback}}
        answer = await api.mine.post("/api/jobs", json=body)
    assert (422, "invalid_request") == (answer.status_code, answer.json()["code"])
    assert words in answer.json()["detail"]
    assert "canary" not in answer.text


async def test_what_a_caller_keeps_secret_shows_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Answers, pages, the feed, logs, the ledger's errors, also when delivery fails."""
    caplog.set_level(logging.INFO)
    with Receiver(lambda _heard: Reply(500)) as receiver:
        async with serve(tmp_path, duties=True) as api:
            url = f"{receiver.url}/canary-in-the-path"
            submitted = await api.submit(["a"], callback={"url": url, "secret": SECRET, "headers": HEADERS})
            await asyncio.to_thread(receiver.wait, 1)
            job = submitted["job"]
            paths = [f"/api/jobs/{job['id']}", "/api/jobs", f"/api/changes?after={submitted['cursor']}", job["url"]]
            paths += ["/jobs", f"/api/jobs/{job['id']}/results"]
            told = json.dumps(submitted) + "".join([(await api.mine.get(path)).text for path in paths])
        told += caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    for word in ("canary", SECRET, "whsec", KEY):
        assert word not in told


async def test_an_idle_engine_waits_for_a_callback_that_is_due_soon(tmp_path: Path) -> None:
    replies = [Reply(500), Reply(204)]
    with Receiver(lambda _heard: replies.pop(0)) as receiver:
        async with serve(tmp_path, idle_seconds=0.1) as api:
            await api.submit([3], callback={"url": receiver.url})
            api.world.prepare()
            stopping = asyncio.Event()
            idle = asyncio.create_task(_stop_when_idle(api.engine, stopping))
            await api.engine.leadership.crew.callbacks.run_once()
            await asyncio.to_thread(receiver.wait, 1)
            await asyncio.sleep(0.5)
            assert not stopping.is_set(), "it is due in five seconds"
            api.world.advance(6)
            await api.engine.leadership.crew.callbacks.run_once()
            async with asyncio.timeout(10):
                await stopping.wait()
            assert replies == []
            idle.cancel()


async def test_an_idle_engine_does_not_wait_for_hours(tmp_path: Path) -> None:
    async with serve(tmp_path, idle_seconds=0.1) as api:
        await api.submit([3], callback={"url": "http://127.0.0.1:9/"})
        api.world.prepare()
        [due] = api.engine.store.callbacks.due(1)
        assert 1 == await api.engine.service.undelivered()
        api.engine.store.callbacks.mark(due.id, "pending", "in a test", 7_200.0)
        assert 0 == await api.engine.service.undelivered()


NEW_SECRET = "whsec_YW5vdGhlciBzZWNyZXQgb2YgdGhlIHRlc3QgOg=="


async def given_up(api: Api, url: str, **facts: Any) -> dict[str, Any]:
    """A job whose callback nobody took, in the list."""
    submitted = await api.submit([3], callback={"url": url, "secret": SECRET, "headers": HEADERS, **facts})
    api.world.prepare()
    job_id = submitted["job"]["id"]
    [due] = [due for due in api.engine.store.callbacks.due(9) if due.job_id == job_id]
    api.engine.store.callbacks.mark(due.id, "given_up", "it answered 500")
    listed = (await api.mine.get("/api/callbacks", params={"state": "given_up"})).json()["callbacks"]
    return next(callback for callback in listed if callback["job_id"] == job_id)


async def test_what_was_given_up_is_listed_and_sent_again(api: Api) -> None:
    with Receiver() as receiver:
        listed = await given_up(api, f"{receiver.url}/canary")
        assert (receiver.url, 1, "it answered 500", "generic") == (
            listed["receiver"], listed["attempts"], listed["last_error"], listed["kind"]
        )  # fmt: skip
        assert listed["next_attempt_at"] is None
        again = (await api.mine.post(f"/api/callbacks/{listed['id']}/replay")).json()
        assert ("pending", 0) == (again["state"], again["attempts"])
        assert again["next_attempt_at"] is not None
        await api.engine.leadership.crew.callbacks.run_once()
        [heard] = await asyncio.to_thread(receiver.wait, 1)
        assert listed["id"] == heard.headers["webhook-id"]
        Webhook(SECRET).verify(heard.body, heard.headers)
        while api.world.store.callbacks.page(api.world.tenant, limit=1)[0].state != "delivered":
            await asyncio.sleep(0.01)
        refused = await api.mine.post(f"/api/callbacks/{listed['id']}/replay")
        assert (409, "callback_delivered") == (refused.status_code, refused.json()["code"])
        told = json.dumps([listed, again]) + refused.text
        assert [] == [word for word in ("canary", "whsec") if word in told]


async def test_all_of_a_receiver_are_sent_again(api: Api) -> None:
    first = await given_up(api, "http://127.0.0.1:9/a")
    await given_up(api, "http://127.0.0.1:9/b")
    await given_up(api, "http://127.0.0.1:10/")
    answer = await api.mine.post("/api/callbacks/replay", json={"receiver": first["receiver"]})
    assert {"callbacks": 2} == answer.json()
    assert 404 == (await api.other.post(f"/api/callbacks/{first['id']}/replay")).status_code
    assert {"callbacks": 0} == (await api.other.post("/api/callbacks/replay", json={"receiver": "x"})).json()


async def test_during_a_rotation_either_secret_verifies(api: Api) -> None:
    """A receiver of the standard's own library takes the message with the old secret alone and with the new one."""
    with Receiver() as receiver:
        await api.submit([3], callback={"url": receiver.url, "secret": SECRET})
        answer = await api.mine.post("/api/callbacks/rotate", json={"old": SECRET, "new": NEW_SECRET})
        assert {"jobs": 1} == answer.json()
        await api.submit([3], callback={"url": receiver.url, "secret": [NEW_SECRET, SECRET]})
        api.world.prepare()
        await api.engine.leadership.crew.callbacks.run_once()
        for heard in await asyncio.to_thread(receiver.wait, 2):
            for secret in (SECRET, NEW_SECRET):
                assert "job.succeeded" == Webhook(secret).verify(heard.body, heard.headers)["type"]
            with pytest.raises(WebhookVerificationError):
                Webhook("whsec_" + "YQ==".rjust(32, "Q")).verify(heard.body, heard.headers)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("rotate", {"old": "canary", "new": NEW_SECRET}),
        ("rotate", {"old": SECRET, "new": "whsec_canary"}),
        ("rotate", {"old": SECRET}),
        ("replay", {"receiver": ""}),
    ],
)
async def test_what_is_no_secret_is_refused_and_not_quoted(api: Api, path: str, body: dict[str, Any]) -> None:
    answer = await api.mine.post(f"/api/callbacks/{path}", json=body)
    assert (422, "invalid_request") == (answer.status_code, answer.json()["code"])
    assert [] == [word for word in ("canary", SECRET, NEW_SECRET) if word in answer.text]


@pytest.mark.parametrize("secret", [[], [SECRET] * 4, [SECRET, "canary"], {"canary": "x"}])
async def test_up_to_three_secrets_may_sign(api: Api, secret: Any) -> None:
    body = {"rows": ["a"], "callback": {"url": "http://127.0.0.1:9/", "secret": secret}}
    answer = await api.mine.post("/api/jobs", json=body)
    assert (422, "invalid_request") == (answer.status_code, answer.json()["code"])
    assert "callback.secret" in answer.json()["detail"]
    assert "canary" not in answer.text
