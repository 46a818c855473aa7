"""
Callbacks across a `kill -9`: a receiver hears at least once, and what it hears twice has one id.
"""

from collections.abc import Callable

import pytest
from standardwebhooks import Webhook
from stories.proxy import FaultProxy
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


def test_an_answer_that_is_reset_on_its_way_is_asked_for_again(serve: Callable[..., Server]) -> None:
    """The receiver has the first message; the engine does not know, and repeats it under the same id."""
    with Receiver() as receiver, FaultProxy("127.0.0.1", int(receiver.url.rpartition(":")[2])) as proxy:
        server = serve()
        proxy.cut_after(b"webhook-signature", b'"job.')
        with server.client() as client:
            job_id = client.infer(["a"], callback=mr.Callback(url=f"http://127.0.0.1:{proxy.port}/", secret=SECRET))
            client.wait(job_id, timeout=60)
            first, second = receiver.wait(2, seconds=60)
    assert 1 == proxy.cuts
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)


def test_a_receiver_in_a_black_hole_holds_up_no_other_and_hears_in_the_end(serve: Callable[..., Server]) -> None:
    """Nothing is passed on, and nothing refused: the attempt ends by its own deadline."""
    with Receiver() as far, Receiver() as near, FaultProxy("127.0.0.1", int(far.url.rpartition(":")[2])) as proxy:
        server = serve()
        proxy.black_hole()
        with server.client() as client:
            lost = client.infer(["a"], callback=mr.Callback(url=f"http://127.0.0.1:{proxy.port}/", secret=SECRET))
            client.wait(lost, timeout=60)
            wait_for(lambda: proxy.connections, what="the first attempt")
            heard = client.infer(["b"], callback=mr.Callback(url=near.url, secret=SECRET))
            client.wait(heard, timeout=60)
            near.wait(1)
            assert not far.heard
            proxy.heal()
            far.wait(1, seconds=90)
