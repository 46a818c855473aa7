"""
One attempt to deliver a callback: what is sent, and how the receiver's answer is read.

The message is thin: ids and counts, never data. Nothing here says more of an error than its
class, since the words of some quote a header.
"""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
from standardwebhooks import Webhook

from milkrun.status import CallbackKind
from milkrun_engine import __version__
from milkrun_engine.domain.callbacks import Attempt, DueCallback
from milkrun_engine.service.egress import Egress, ForbiddenAddress

ATTEMPT_SECONDS = 15.0
MAX_ANSWER_BYTES = 1_000_000  # a flow run comes with its parameters
_SUSPENDS_WITHIN_SECONDS = 600.0
_GONE = {404, 410}
_RESUME = "/resume"
#: states of a Prefect flow run that will never suspend, or suspend again
_RUN_IS_OVER = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED", "CANCELLING"}
_RUN_GOES_ON = {"SCHEDULED", "PENDING", "RUNNING", "PAUSED"}


class Sender:
    """Sends callbacks: to checked addresses only, over no proxy, following no redirect, keeping no cookie."""

    def __init__(self, egress: Egress, *, attempt_seconds: float = ATTEMPT_SECONDS) -> None:
        self._egress = egress
        self._seconds = attempt_seconds
        # A transport, not a client: what a client would add is what must not happen here. A connection is not kept,
        # for it would be kept by address, and another name of that address must show its own certificate.
        self._transport = httpx.AsyncHTTPTransport(
            verify=httpx.create_ssl_context(),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Let go of the connections."""
        await self._transport.aclose()

    async def attempt(self, due: DueCallback) -> tuple[Attempt, str | None]:
        """Send once; returns what that came to, and what went wrong."""
        try:
            async with asyncio.timeout(self._seconds):
                if due.kind is CallbackKind.prefect_resume:
                    return await self._resume(due)
                return await self._post(due)
        except ForbiddenAddress as error:
            return Attempt.failed, str(error)
        except Exception as error:
            return Attempt.failed, f"no answer ({type(error).__name__})"

    async def _post(self, due: DueCallback) -> tuple[Attempt, str | None]:
        status, _ = await self._ask("POST", httpx.URL(due.url), headers(due), message(due), read=False)
        if 200 <= status < 300:
            return Attempt.delivered, None
        return Attempt.unwanted if status == 410 else Attempt.failed, f"it answered {status}"

    async def _resume(self, due: DueCallback) -> tuple[Attempt, str | None]:
        """
        Resume a flow run that is suspended for this job, and no other: it may wait for a person's word.

        Its tags say for which job it is (`milkrun:<job id>`). Prefect answers 200 also when it does nothing: its words
        count.
        """
        url = httpx.URL(due.url)
        status, answer = await self._ask("GET", url.copy_with(path=url.path.removesuffix(_RESUME)), due.headers)
        if status in _GONE:
            return Attempt.unwanted, f"it answered {status}: there is no such flow run"
        run = _object(answer) if status == 200 else {}
        state = (run.get("state") or {}).get("type") if isinstance(run.get("state"), dict) else run.get("state_type")
        if state in _RUN_IS_OVER:
            return Attempt.unwanted, f"the flow run is {state}"
        if state not in _RUN_GOES_ON:
            return Attempt.failed, f"it answered {status} and no state of the flow run"
        tags = run.get("tags")
        is_ours = isinstance(tags, list) and f"milkrun:{due.job_id}" in tags
        if state != "PAUSED" or not is_ours:
            # It tags itself, looks and suspends within moments, or went on without suspending.
            late = not is_ours and due.age_seconds > _SUSPENDS_WITHIN_SECONDS
            return Attempt.unwanted if late else Attempt.too_early, f"the flow run is {state}, not for this job"
        status, answer = await self._ask("POST", url, headers(due), message(due))
        verdict = _object(answer).get("status") if 200 <= status < 300 else None
        if verdict == "ACCEPT":
            return Attempt.delivered, None
        if verdict == "ABORT":
            return Attempt.too_early, "the flow run was not suspended any more"
        return Attempt.failed, f"it answered {status} and no verdict of Prefect's"

    async def _ask(
        self, method: str, url: httpx.URL, given: Mapping[str, str], content: bytes = b"", *, read: bool = True
    ) -> tuple[int, bytes]:
        """One request; returns the answer's status and, if asked for, the beginning of its body."""
        addresses = await self._egress.addresses(url)
        failure: Exception = ForbiddenAddress("its name has no address")
        for address in addresses:
            request = httpx.Request(
                method,
                url.copy_with(host=address),
                headers=_merged(given, {"Host": url.netloc.decode("ascii")}),
                content=content,
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
            )
            try:
                response = await self._transport.handle_async_request(request)
            except httpx.ConnectError as error:
                failure = error
                continue
            try:
                return response.status_code, await _beginning(response) if read else b""
            finally:
                await response.aclose()
        raise failure


def headers(due: DueCallback) -> httpx.Headers:
    """The headers of an attempt made now: the caller's, and those of Standard Webhooks."""
    now = datetime.now(UTC)
    made = {"webhook-id": due.id, "webhook-timestamp": str(int(now.timestamp()))}
    if due.secrets:
        signatures = [Webhook(secret).sign(due.id, now, message(due).decode()) for secret in due.secrets]
        made["webhook-signature"] = " ".join(signatures)
    return _merged({"Content-Type": "application/json"}, due.headers, made)


def message(due: DueCallback) -> bytes:
    """The body, the same on every attempt."""
    data: dict[str, Any] = {
        "id": due.job_id,
        "status": due.status,
        "rows_total": due.rows_total,
        "rows_succeeded": due.rows_succeeded,
        "rows_failed": due.rows_failed,
    }
    if due.labels:
        data["labels"] = due.labels
    ended = datetime.fromtimestamp(due.finished_at, UTC).isoformat(timespec="milliseconds")
    return json.dumps({"type": f"job.{due.status}", "timestamp": ended, "data": data}).encode()


def _merged(*some: Mapping[str, str]) -> httpx.Headers:
    """Headers, each once whatever its case; the later ones win."""
    # Identity, because the limit on an answer is on its bytes as they come.
    merged = httpx.Headers({"User-Agent": f"milkrun/{__version__}", "Accept-Encoding": "identity"})
    for one in some:
        merged.update(one)
    return merged


async def _beginning(response: httpx.Response) -> bytes:
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            break
    return body[:MAX_ANSWER_BYTES]


def _object(body: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for whatever else it is."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
