"""
Fail points: named places in a job's life at which a test makes this process die, wait, or find its disk full.

`MILKRUN_FAILPOINTS` names point, fault and the time at which it is reached, from 1:
`result_renamed=kill@3,record_committed=pause:2@1,input_written=enospc@1`. Without it a point is one look at None.
"""

import errno
import logging
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from threading import Lock

log = logging.getLogger(__name__)
_ENTRY = re.compile(r"(?P<point>\w+)=(?P<fault>kill|enospc|eio|pause:(?P<seconds>\d+(\.\d+)?))@(?P<time>[1-9]\d*)")


class Point(StrEnum):
    """Where a fault may be put; a file's points stand before and after what makes it durable."""

    upload_received = "upload_received"  #: a piece of an upload is written
    input_written = "input_written"  #: all bytes of an input are written, none need be on disk
    input_renamed = "input_renamed"  #: an input has its name
    submit_uncommitted = "submit_uncommitted"  #: a new job is written and its transaction is open
    submit_committed = "submit_committed"  #: a new job is in the ledger
    answer_due = "answer_due"  #: nothing but the answer to a submit is missing
    window_planned = "window_planned"  #: a window's rows are read, none of its files is written
    chunk_written = "chunk_written"  #: all bytes of a chunk's rows are written, none need be on disk
    chunk_renamed = "chunk_renamed"  #: a chunk's rows have their name
    window_uncommitted = "window_uncommitted"  #: a window is written and its transaction is open
    window_committed = "window_committed"  #: a window is in the ledger
    chunk_claimed = "chunk_claimed"  #: chunks are leased, and nobody works on them
    job_started = "job_started"  #: a job is running, and its rows are in no replica
    rows_handed_out = "rows_handed_out"  #: a replica has rows
    rows_finished = "rows_finished"  #: a replica has answered rows
    result_written = "result_written"  #: all bytes of a result are written, none need be on disk
    result_synced = "result_synced"  #: a result is on disk and has no name
    result_renamed = "result_renamed"  #: a result has its name
    record_uncommitted = "record_uncommitted"  #: a chunk's commit is written and its transaction is open
    record_committed = "record_committed"  #: a chunk is committed
    job_ended = "job_ended"  #: a job is over, and nobody has been told
    callback_sent = "callback_sent"  #: a receiver has answered, and that is not noted
    cancel_uncommitted = "cancel_uncommitted"  #: a cancel is written and its transaction is open
    cancel_committed = "cancel_committed"  #: a job is cancelled, and its replica does not know
    leases_renewed = "leases_renewed"  #: a heartbeat is in the ledger
    election_taken = "election_taken"  #: this process has the dispatcher's post and no crew yet
    crew_started = "crew_started"  #: everybody's leases are given back, and the crew is at work
    leftover_found = "leftover_found"  #: a file that nobody names is about to be deleted


class _Plan:
    """What happens at which time that a point is reached; the points of all threads count together."""

    def __init__(self, text: str) -> None:
        self._faults: dict[tuple[Point, int], Callable[[], None]] = {}
        self._reached: Counter[Point] = Counter()
        self._lock = Lock()
        for entry in text.split(","):
            found = _ENTRY.fullmatch(entry.strip())
            if found is None:
                raise ValueError(
                    f"MILKRUN_FAILPOINTS: {entry.strip()!r} is not POINT=FAULT@TIME with FAULT one of "
                    "kill, pause:SECONDS, enospc, eio"
                )
            if found["point"] not in set(Point):
                raise ValueError(f"MILKRUN_FAILPOINTS: no point {found['point']!r}; there are {', '.join(Point)}")
            self._faults[Point(found["point"]), int(found["time"])] = _fault(found["fault"], found["seconds"])

    def reach(self, point: Point) -> None:
        with self._lock:
            self._reached[point] += 1
            fault = self._faults.get((point, self._reached[point]))
        if fault is not None:
            log.warning("fail point", extra={"action": "fail_point", "point": point, "time": self._reached[point]})
            fault()


_plan: _Plan | None = None


def arm(text: str | None) -> None:
    """
    Arm the points that a text as in `MILKRUN_FAILPOINTS` names, and no others.

    Raises:
        ValueError: it has a typo; the message says where.
    """
    global _plan
    _plan = _Plan(text) if text else None


def reached(point: Point) -> None:
    """
    Say that this thread is at a point: what is planned there happens; a pause holds up this thread only.

    Raises:
        OSError: the point's fault is a full or failing disk.
    """
    if _plan is not None:
        _plan.reach(point)


def file_reached(name: str, step: str) -> None:
    """Say how far a blob's file is; its name says what it holds, and not every step of every kind is a point."""
    if _plan is not None:
        kind = "input" if name.startswith("inputs/") else "result" if ".out_" in name else "chunk"
        if (point := Point.__members__.get(f"{kind}_{step}")) is not None:
            _plan.reach(point)


def _fault(name: str, seconds: str | None) -> Callable[[], None]:
    match name:
        case "kill":
            return lambda: os.kill(os.getpid(), signal.SIGKILL)
        case "enospc":
            return lambda: _refuse(errno.ENOSPC)
        case "eio":
            return lambda: _refuse(errno.EIO)
        case _:
            return lambda: time.sleep(float(seconds or 0))


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))
