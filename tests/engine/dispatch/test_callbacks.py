"""
The callback duty against real receivers on a port: signatures, retries, Prefect's verdicts, slow and hostile ones.
"""

import asyncio
import json
import logging
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fix_store import World
from sqlalchemy import select
from standardwebhooks import Webhook, WebhookVerificationError
from stories.receiver import Heard, Receiver, Reply

from milkrun.status import CallbackKind
from milkrun_engine.dispatch.callbacks import Callbacks
from milkrun_engine.dispatch.delivery import MAX_ANSWER_BYTES, Sender
from milkrun_engine.dispatch.duty import repeat
from milkrun_engine.service.egress import Egress
from milkrun_engine.service.signals import Signals
from milkrun_engine.service.threads import Threads
from milkrun_engine.store.schema import callbacks

pytestmark = pytest.mark.anyio
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
HOURS = 3_600.0


@asynccontextmanager
async def duty(world: World, *, private: bool = True, seconds: float = 2.0) -> AsyncIterator[Callbacks]:
    """The duty over a ledger, moved by hand."""
    threads = Threads()
    sender = Sender(Egress(private=private), attempt_seconds=seconds)
    made = Callbacks(store=world.store, threads=threads, signals=Signals(), sender=sender)
    try:
        yield made
    finally:
        await made.stop()
        threads.stop()


async def send_due(callbacks: Callbacks) -> None:
    """Send what is due, and wait until it is marked."""
    await callbacks.run_once()
    await asyncio.gather(*(task for _, task in callbacks._sending.values()))


def ended(world: World, url: str, *, kind: str = "generic", labels: Any = None, **facts: Any) -> str:
    """A job with a callback, all of whose rows were refused: it is over."""
    return world.prepared([None], callback={"kind": kind, "url": url, **facts}, labels=labels or {})


def marks(world: World) -> list[tuple[str, int, str | None]]:
    """State, attempts and last error of the outbox."""
    with world.store.database.read() as connection:
        rows = connection.execute(select(callbacks).order_by(callbacks.c.created_at))
        return [(row.state, row.attempts, row.last_error) for row in rows]


async def test_the_receiver_can_verify_what_it_gets(world: World) -> None:
    with Receiver() as receiver:
        job_id = ended(world, f"{receiver.url}/hook?a=b", secret=SECRET, headers={"X-Team": "a"}, labels={"run": "7"})
        async with duty(world) as callbacks:
            await send_due(callbacks)
    [heard] = receiver.heard
    assert ("POST", "/hook?a=b", "application/json", "a", f"127.0.0.1:{receiver.port}") == (
        heard.method, heard.path, heard.headers["content-type"], heard.headers["x-team"], heard.headers["host"]
    )  # fmt: skip
    event = Webhook(SECRET).verify(heard.body, heard.headers)
    assert {"type", "timestamp", "data"} == set(event)
    assert "job.succeeded" == event["type"]
    counts = {"rows_total": 1, "rows_succeeded": 0, "rows_failed": 1}
    assert {"id": job_id, "status": "succeeded", "labels": {"run": "7"}, **counts} == event["data"]
    assert [("delivered", 1, None)] == marks(world)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(heard.body.replace(b"succeeded", b"failed"), heard.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(heard.body, {**heard.headers, "webhook-id": "callback_other"})


async def test_without_a_secret_nothing_is_signed(world: World) -> None:
    with Receiver() as receiver:
        ended(world, receiver.url)
        async with duty(world) as callbacks:
            await send_due(callbacks)
    [heard] = receiver.heard
    assert heard.headers["webhook-id"]
    assert "webhook-signature" not in heard.headers


async def test_ten_attempts_over_75_hours_carry_one_id(world: World) -> None:
    with Receiver(lambda _heard: Reply(500)) as receiver:
        ended(world, receiver.url, secret=SECRET)
        hours = 0.0
        async with duty(world) as callbacks:
            while marks(world)[0][0] == "pending":
                if world.store.callbacks.due(1):
                    await send_due(callbacks)
                else:
                    step = 2.0 if hours < 0.01 else 600.0
                    world.advance(step)
                    hours += step / HOURS
    assert [("given_up", 10, "it answered 500")] == marks(world)
    assert 10 == len(receiver.heard)
    assert 1 == len({(heard.headers["webhook-id"], heard.body) for heard in receiver.heard})
    assert 67 < hours < 85
    world.advance(1_000 * HOURS)
    assert world.store.callbacks.due(1) == []


async def test_it_is_sent_again_until_it_is_taken(world: World) -> None:
    replies = [Reply(503), Reply(404), Reply(202)]
    with Receiver(lambda _heard: replies.pop(0)) as receiver:
        ended(world, receiver.url)
        async with duty(world) as callbacks:
            for _ in range(3):
                await send_due(callbacks)
                world.advance(400)
    assert [("delivered", 3, None)] == marks(world)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(world: World, status: int) -> None:
    with Receiver() as other, Receiver(lambda _heard: Reply(status, headers={"location": other.url})) as receiver:
        ended(world, receiver.url)
        async with duty(world) as callbacks:
            await send_due(callbacks)
    assert [("pending", 1, f"it answered {status}")] == marks(world)
    assert (1, 0) == (len(receiver.heard), len(other.heard))


async def test_a_receiver_that_is_gone_is_told_nothing_more(world: World) -> None:
    with Receiver(lambda _heard: Reply(410)) as receiver:
        ended(world, receiver.url)
        async with duty(world) as callbacks:
            await send_due(callbacks)
    assert [("given_up", 1, "it answered 410")] == marks(world)


async def test_no_answer_and_no_receiver_are_failures(world: World) -> None:
    with Receiver(lambda _heard: Reply(after_seconds=60)) as silent:
        ended(world, silent.url)
        ended(world, "http://127.0.0.1:9/closed")
        ended(world, "http://no-such-name.invalid/")
        async with duty(world, seconds=0.5) as callbacks:
            await send_due(callbacks)
    assert [("pending", 1)] * 3 == [mark[:2] for mark in marks(world)]
    errors = [error for *_, error in marks(world)]
    assert ["no answer (TimeoutError)", "no answer (ConnectError)"] == errors[:2]
    assert "no answer (" in errors[2]


@pytest.mark.parametrize("kind", ["generic", "prefect_resume"])
async def test_of_an_answer_a_megabyte_is_read(world: World, kind: str) -> None:
    with Receiver(lambda _heard: Reply(body=b" " * 1_000_000, repeat_body=200)) as receiver:
        ended(world, f"{receiver.url}/api/flow_runs/1/resume", kind=kind)
        async with duty(world, seconds=10) as callbacks:
            await send_due(callbacks)
        await asyncio.sleep(0.2)
        assert MAX_ANSWER_BYTES <= 1_000_000
        assert receiver.sent_bytes < 50_000_000, "what the system's buffers took"


async def test_a_slow_receiver_delays_no_other(world: World) -> None:
    with Receiver(lambda _heard: Reply(after_seconds=60)) as slow, Receiver() as quick:
        for _ in range(40):
            ended(world, slow.url)
        for _ in range(10):
            ended(world, quick.url)
        async with duty(world, seconds=30) as callbacks:
            began = time.monotonic()
            running = asyncio.create_task(repeat("callbacks", callbacks.run_once))
            await asyncio.to_thread(quick.wait, 10)
            assert time.monotonic() - began < 2
            assert len(slow.heard) <= 4
            running.cancel()


async def test_an_ending_duty_waits_a_moment_and_what_is_not_answered_stays_due(world: World) -> None:
    with Receiver(lambda _heard: Reply(after_seconds=60)) as slow:
        ended(world, slow.url)
        async with duty(world, seconds=30) as callbacks:
            await callbacks.run_once()
            await asyncio.to_thread(slow.wait, 1)
        assert [("pending", 0, None)] == marks(world)
        assert 1 == len(world.store.callbacks.due(9))


async def test_proxies_of_the_environment_hear_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy, Receiver() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        ended(world, receiver.url)
        async with duty(world) as callbacks:
            await send_due(callbacks)
    assert (0, 1) == (len(proxy.heard), len(receiver.heard))


async def test_a_name_is_called_at_each_of_its_addresses(world: World) -> None:
    """`localhost` may be ::1 first, where nobody listens."""
    with Receiver() as receiver:
        ended(world, f"http://localhost:{receiver.port}/")
        async with duty(world) as callbacks:
            await send_due(callbacks)
    assert f"localhost:{receiver.port}" == receiver.heard[0].headers["host"]


def certified(folder: Path) -> ssl.SSLContext:
    """A server's proof that it is `localhost`, signed by itself."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    return tls


async def test_the_certificate_is_that_of_the_name(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to a checked address, and the receiver proves its name all the same."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    with Receiver(tls=certified(tmp_path)) as receiver:
        ended(world, f"https://localhost:{receiver.port}/")
        ended(world, f"https://127.0.0.1:{receiver.port}/")
        async with duty(world) as callbacks:
            await send_due(callbacks)
    assert [("delivered", 1, None), ("pending", 1, "no answer (ConnectError)")] == marks(world)


# Prefect ------------------------------------------------------------------------------------------------------------


class Prefect:
    """Stands in for Prefect's server: a run's state decides about `resume`, as the real one was seen to answer."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)  #: one a resume; the last one stays
        self.failing = 0  #: so many requests are answered with 500
        self.tags: list[str] = []

    def __call__(self, heard: Heard) -> Reply:
        if self.failing:
            self.failing -= 1
            return Reply(500, b"database is locked")
        if heard.path.removeprefix("/api/flow_runs/run_1") not in {"", "/resume"}:
            return Reply(404)
        state = self.states[0]
        if heard.method == "GET":
            if len(self.states) > 1:
                self.states.pop(0)
            facts = {"state_type": state, "state": {"type": state, "name": state.title()}, "tags": self.tags}
            return self._json({"id": "run_1", **facts})
        if state == "PAUSED":
            return self._json({"status": "ACCEPT", "state": {"type": "SCHEDULED"}, "details": {"type": "accept"}})
        reason = "Cannot resume a flow run that is not paused."
        return self._json({"status": "ABORT", "state": None, "details": {"type": "abort_details", "reason": reason}})

    @staticmethod
    def _json(body: Any) -> Reply:
        return Reply(200, json.dumps(body).encode(), {"content-type": "application/json"})


HEADERS = {"Authorization": "Basic dTpw"}


async def resume(
    world: World,
    prefect: Callable[[Heard], Reply],
    *,
    attempts: int,
    path: str = "run_1",
    tagged: bool = True,
    apart: float = 4,
) -> list[Heard]:
    """Let a job end and try to resume its run so often, a few seconds apart."""
    with Receiver(prefect) as receiver:
        url = f"{receiver.url}/api/flow_runs/{path}/resume"
        job_id = ended(world, url, kind=CallbackKind.prefect_resume, headers=HEADERS)
        if isinstance(prefect, Prefect):
            prefect.tags = ["a user's", f"milkrun:{job_id if tagged else 'job_of_another_step'}"]
        async with duty(world) as callbacks:
            for _ in range(attempts):
                if world.store.callbacks.due(1):
                    await send_due(callbacks)
                world.advance(apart)
    return receiver.heard


async def test_a_suspended_run_is_resumed(world: World) -> None:
    looked, heard = await resume(world, Prefect("PAUSED"), attempts=1)
    assert ("GET", "/api/flow_runs/run_1") == (looked.method, looked.path)
    assert ("POST", "/api/flow_runs/run_1/resume", "Basic dTpw") == (
        heard.method, heard.path, heard.headers["authorization"]
    )  # fmt: skip
    assert [("delivered", 1, None)] == marks(world)


async def test_a_run_that_has_not_suspended_yet_is_tried_again_until_it_has(world: World) -> None:
    heard = await resume(world, Prefect("SCHEDULED", "PENDING", "RUNNING", "PAUSED"), attempts=4)
    assert ["GET"] * 4 + ["POST"] == [request.method for request in heard]
    assert {"/api/flow_runs/run_1"} == {request.path for request in heard if request.method == "GET"}
    assert {"Basic dTpw"} == {request.headers["authorization"] for request in heard}
    assert [("delivered", 4, None)] == marks(world)


async def test_a_run_that_waits_for_something_else_is_left_alone(world: World) -> None:
    """A person's word, or another job's end: after some minutes it will not suspend for this one any more."""
    heard = await resume(world, Prefect("PAUSED"), attempts=12, tagged=False, apart=90)
    assert {"GET"} == {request.method for request in heard}
    [(state, _, reason)] = marks(world)
    assert ("given_up", "the flow run is PAUSED, not for this job") == (state, reason)


async def test_a_run_that_was_resumed_by_another_meanwhile_is_looked_at_again(world: World) -> None:
    class Faster(Prefect):
        def __call__(self, heard: Heard) -> Reply:
            if heard.method == "POST":
                self.states = ["RUNNING"]
            return super().__call__(heard)

    await resume(world, Faster("PAUSED"), attempts=1)
    assert [("pending", 1, "the flow run was not suspended any more")] == marks(world)


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "CRASHED", "CANCELLING"])
async def test_a_run_that_is_over_is_left_alone(world: World, state: str) -> None:
    await resume(world, Prefect("RUNNING", state), attempts=4)
    assert [("given_up", 2, f"the flow run is {state}")] == marks(world)


async def test_a_run_that_does_not_exist_is_left_alone(world: World) -> None:
    heard = await resume(world, Prefect("PAUSED"), attempts=4, path="run_2")
    assert 1 == len(heard)
    assert [("given_up", 1, "it answered 404: there is no such flow run")] == marks(world)


async def test_a_prefect_that_answers_500_is_asked_again_within_seconds(world: World) -> None:
    prefect = Prefect("RUNNING", "PAUSED")
    prefect.failing = 2
    await resume(world, prefect, attempts=5)
    assert [("delivered", 4, None)] == marks(world)


@pytest.mark.parametrize("body", [b"<html>a proxy's page</html>", b"[]", b'{"status": 1}', b"[" * 100_000, b""])
async def test_an_answer_that_is_not_prefects_is_a_failure(world: World, body: bytes) -> None:
    await resume(world, lambda _heard: Reply(200, body), attempts=1)
    assert [("pending", 1, "it answered 200 and no state of the flow run")] == marks(world)


# What stays secret --------------------------------------------------------------------------------------------------


async def test_no_log_and_no_error_tells_a_secret(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore").setLevel(logging.WARNING)  # as `logs.configure` does
    facts: dict[str, Any] = {"secret": SECRET, "headers": {"Authorization": "canary \u00e9\n of a header"}}
    with Receiver() as receiver:
        ended(world, f"{receiver.url}/canary-in-the-path", **facts)
        ended(world, f"{receiver.url}/canary-in-the-path", secret="whsec_%%%canary")
        ended(world, "http://127.0.0.1:9/canary", **facts)
        async with duty(world) as callbacks:
            await send_due(callbacks)
    told = caplog.text + "".join(str(record.__dict__) for record in caplog.records) + str(marks(world))
    assert "127.0.0.1" in told
    assert "canary" not in told
    assert SECRET not in told


# Where nothing is sent ----------------------------------------------------------------------------------------------


async def test_a_private_address_is_not_called_unless_allowed(world: World) -> None:
    with Receiver() as receiver:
        ended(world, receiver.url)
        async with duty(world, private=False) as callbacks:
            await send_due(callbacks)
    assert receiver.heard == []
    [(state, attempts, error)] = marks(world)
    assert ("pending", 1) == (state, attempts)
    assert error is not None
    assert "MILKRUN_CALLBACK_PRIVATE" in error


async def test_a_name_that_changes_its_mind_is_not_followed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Public when it was submitted, loopback when it is called."""
    answers = ["93.184.215.14", "127.0.0.1"]

    async def flipping(_host: str, port: int, **_options: Any) -> list[Any]:
        return [(2, 1, 6, "", (answers.pop(0), port))]

    with Receiver() as receiver:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", flipping)
        url = f"http://flipping.test:{receiver.port}/"
        await Egress(private=False).check(url)
        ended(world, url)
        async with duty(world, private=False) as callbacks:
            await send_due(callbacks)
    assert ([], [], "pending") == (answers, receiver.heard, marks(world)[0][0])
