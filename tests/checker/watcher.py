"""
A reader of the change feed that writes down what it is shown, across restarts of the server.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import httpx

from checker.facts import Sighting


class FeedWatcher:
    """
    Follows the feed in a thread while its `with` block runs; `sightings` are in the order seen.

    A connection that breaks is tried again with the same cursor, as a waiter would. The block
    begins once the feed has answered, and ends after one more read: nothing that happened in it
    is missed. What else goes wrong, a refusal by the server among it, is raised at its end.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self.sightings: list[Sighting] = []
        self.lost_cursors = 0
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=10, trust_env=False
        )
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, "feed watcher")

    def __enter__(self) -> Self:
        try:
            self._following = self._thread.submit(self._follow, self._read(None, wait=0))
        except BaseException:
            self._http.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.shutdown()
        self._http.close()
        if kind is None:
            self._following.result()

    def _follow(self, cursor: str | None) -> None:
        is_last = False
        while not is_last:
            is_last = self._stop.is_set()
            try:
                cursor = self._read(cursor, wait=0 if is_last else 1)
            except httpx.TransportError:
                time.sleep(0.05)

    def _read(self, cursor: str | None, *, wait: int) -> str | None:
        """Write down one answer; returns the next cursor, none when the feed is to be begun anew."""
        params: dict[str, Any] = {"on": "progress"} if cursor is None else {"on": "progress", "after": cursor}
        answer = self._http.get("/api/changes", params={**params, "wait": wait})
        if answer.status_code == httpx.codes.GONE:
            self.lost_cursors += 1
            return None
        news = answer.raise_for_status().json()
        next_cursor: str = news["cursor"]
        number = int(next_cursor.rpartition(".")[2])
        self.sightings += [
            Sighting(job["id"], job["status"], job["rows_succeeded"] + job["rows_failed"], number)
            for job in news["jobs"]
        ] or [Sighting(None, "", 0, number)]
        return next_cursor
