"""
The same task as a hand-written loop over a chat API: what a batch job spares you.

Runs against any OpenAI-compatible server (BASE_URL, API_KEY, MODEL). It knows about rate limits,
retries, concurrency and bad rows, and still starts from nothing when its process ends, keeps its
rate by guessing, cannot be watched or cancelled from elsewhere, and trusts the answers' wording.
"""

import asyncio
import csv
import os
import random
import sys
import time
from typing import Any

import httpx

from task import LABELS, messages, read_reviews

IN_FLIGHT = 16
PER_MINUTE = 600
ATTEMPTS = 6


class Pace:
    """At most so many requests a minute, spread evenly; a 429 pauses everybody."""

    def __init__(self, per_minute: int) -> None:
        self._gap = 60 / per_minute
        self._next = 0.0

    async def turn(self) -> None:
        """Wait for this request's turn."""
        now = time.monotonic()
        self._next = max(self._next, now) + self._gap
        await asyncio.sleep(self._next - self._gap - now)

    def pause(self, seconds: float) -> None:
        """Let nobody start for a while."""
        self._next = max(self._next, time.monotonic() + seconds)


async def classify(client: httpx.AsyncClient, pace: Pace, text: str) -> dict[str, Any]:
    """Ask until there is an answer, a final refusal, or no patience left."""
    body = {
        "model": os.environ.get("MODEL", "default"),
        "messages": messages(text),
        "temperature": 0,
        "max_tokens": 4,
    }
    problem = "never tried"
    for attempt in range(ATTEMPTS):
        await pace.turn()
        wait = min(30.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
        try:
            response = await client.post("chat/completions", json=body)
        except httpx.TransportError as error:
            problem = repr(error)
            await asyncio.sleep(wait)
            continue
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            problem = "rate limited"
            pace.pause(float(response.headers.get("retry-after", wait)))
            continue
        if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            problem = f"server error {response.status_code}"
            await asyncio.sleep(wait)
            continue
        if response.is_error:  # this row's own fault: too long, refused, …
            return {"error": response.text[:200]}
        words = response.json()["choices"][0]["message"]["content"].lower().split()
        label = next((word.strip(".,!\"'") for word in words if word.strip(".,!\"'") in LABELS), None)
        return {"label": label} if label else {"error": f"no label in the answer: {' '.join(words)!r}"}
    return {"error": f"gave up after {ATTEMPTS} attempts: {problem}"}


async def main() -> None:
    """Classify every review and write the answers as CSV."""
    reviews = read_reviews()
    base = os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1").rstrip("/") + "/"
    key = os.environ.get("API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    pace, seats = Pace(PER_MINUTE), asyncio.Semaphore(IN_FLIGHT)
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=120) as client:

        async def one(text: str) -> dict[str, Any]:
            async with seats:
                return await classify(client, pace, text)

        answers = await asyncio.gather(*(one(review["text"]) for review in reviews))
    writer = csv.writer(sys.stdout)
    writer.writerow(["id", "label", "error"])
    for review, answer in zip(reviews, answers, strict=True):
        writer.writerow([review["id"], answer.get("label"), answer.get("error")])


if __name__ == "__main__":
    asyncio.run(main())
