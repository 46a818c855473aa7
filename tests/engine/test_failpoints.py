"""
Fail points: what is planned happens at its time and nowhere else.
"""

import errno
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from milkrun_engine import failpoints
from milkrun_engine.failpoints import Point, file_reached, reached


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm(None)


def test_nothing_happens_unless_planned() -> None:
    for point in Point:
        reached(point)


@pytest.mark.parametrize(("name", "number"), [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
def test_a_fault_happens_once_at_its_time_and_is_logged(
    caplog: pytest.LogCaptureFixture, name: str, number: int
) -> None:
    failpoints.arm(f"job_started=pause:0@1, record_committed={name}@2")
    reached(Point.record_committed)
    assert [] == caplog.records
    reached(Point.job_started)
    with caplog.at_level(logging.WARNING), pytest.raises(OSError) as refused:
        reached(Point.record_committed)
    assert number == refused.value.errno
    assert [("job_started", 1), ("record_committed", 2)] == [(record.point, record.time) for record in caplog.records]
    reached(Point.record_committed)


def test_a_pause_takes_its_seconds() -> None:
    failpoints.arm("job_started=pause:0.05@1")
    began = time.monotonic()
    reached(Point.job_started)
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("inputs/default/rows_1", "input_written"),
        ("jobs/job_1/0.in_1.parquet", "chunk_written"),
        ("jobs/job_1/0.3.out_1.parquet", "result_written"),
    ],
)
def test_a_file_is_known_by_its_name(name: str, point: str) -> None:
    failpoints.arm(f"{point}=enospc@1")
    file_reached(name, "synced")
    with pytest.raises(OSError):
        file_reached(name, "written")


@pytest.mark.parametrize(
    "text",
    [
        "job_startd=kill@1",
        "job_started=kil@1",
        "job_started=kill",
        "job_started=kill@0",
        "job_started=pause@1",
        "kill,",
    ],
)
def test_a_typo_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="MILKRUN_FAILPOINTS"):
        failpoints.arm(text)


def test_every_point_is_documented() -> None:
    page = (Path(__file__).parents[2] / "engine" / "docs" / "faults.md").read_text()
    assert list(Point) == re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)


def test_the_documented_example_is_understood() -> None:
    page = (Path(__file__).parents[2] / "engine" / "docs" / "faults.md").read_text()
    [example] = re.findall(r'MILKRUN_FAILPOINTS="(.+?)"', page)
    failpoints.arm(example)
