"""
A reader of the change feed that writes down what it is shown, across restarts of the server.
"""

import contextlib
import threading
import time
from types import TracebackType
from typing import Any, Self

import httpx

from checker.facts import Sighting


class FeedWatcher:
    """
    Follows the feed in a thread while its `with` block runs; `sightings` are in the order seen.

    A connection that breaks is tried again with the same cursor, as a waiter would.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self.sightings: list[Sighting] = []
        self.lost_cursors = 0
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=10, trust_env=False
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._http.close()

    def _follow(self) -> None:
        cursor: str | None = None
        while not self._stop.is_set():
            params: dict[str, Any] = (
                {"on": "progress"} if cursor is None else {"on": "progress", "after": cursor, "wait": 1}
            )
            try:
                answer = self._http.get("/api/changes", params=params)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if answer.status_code == httpx.codes.GONE:
                self.lost_cursors += 1
                cursor = None
            elif answer.is_success:
                news = answer.json()
                cursor = news["cursor"]
                number = int(cursor.rpartition(".")[2])
                self.sightings += [
                    Sighting(job["id"], job["status"], job["rows_succeeded"] + job["rows_failed"], number)
                    for job in news["jobs"]
                ]
            else:
                with contextlib.suppress(httpx.HTTPError):
                    time.sleep(0.05)
