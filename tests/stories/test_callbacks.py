"""
Callbacks across a `kill -9`: a receiver hears at least once, and what it hears twice has one id.
"""

from collections.abc import Callable

import pytest
from standardwebhooks import Webhook
from stories.receiver import Receiver, Reply
from stories.server import Server, wait_for

import milkrun as mr

pytestmark = pytest.mark.engine
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_a_server_killed_between_send_and_mark_sends_again(serve: Callable[..., Server]) -> None:
    """The receiver has the first message and its answer never arrives; the next server repeats it under the same id."""
    pauses = [60.0, 0.0]
    with Receiver(lambda _heard: Reply(204, after_seconds=pauses.pop(0))) as receiver:
        server = serve()
        with server.client() as client:
            callback = mr.Callback(url=f"{receiver.url}/ended", secret=SECRET)
            job_id = client.infer(["a", "b"], callback=callback, labels={"run": "7"})
            client.wait(job_id, timeout=60)
            receiver.wait(1)
            server.kill()
            server.start()
            first, second = receiver.wait(2)
            assert mr.JobStatus.succeeded is client.job(job_id).status
        assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
        events = [Webhook(SECRET).verify(heard.body, heard.headers) for heard in (first, second)]
        assert [job_id] * 2 == [event["data"]["id"] for event in events]
        server.stop()
        server.start()
        assert 2 == len(receiver.heard), "once it is marked it is not sent again"


def test_a_server_killed_between_two_attempts_goes_on_after_its_restart(serve: Callable[..., Server]) -> None:
    """A Prefect that says 503 is asked on."""
    with Receiver(lambda _heard: Reply(503)) as busy:
        server = serve()
        with server.client() as client:
            resume = mr.Callback(kind="prefect_resume", url=f"{busy.url}/api/flow_runs/run_1/resume")
            job_id = client.infer(["a"], callback=resume)
            client.wait(job_id, timeout=60)
            busy.wait(2)
            server.kill()
            heard = len(busy.heard)
            server.start()
            wait_for(lambda: len(busy.heard) > heard, what="another attempt")
    assert {("GET", "/api/flow_runs/run_1")} == {(request.method, request.path) for request in busy.heard}
