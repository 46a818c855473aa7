"""
`milkrun stop`, as a person types it: it finds the directory meant, and tells no engine from one that does not answer.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from milkrun import local
from milkrun_engine.lock import DataDirLock


def milkrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from milkrun._cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("before", [True, False], ids=["before the command", "behind it"])
def test_the_directory_may_stand_on_either_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    monkeypatch.setenv("MILKRUN_REPLICA", "echo")
    engine = local.ensure(tmp_path)
    place = ("--data-dir", str(tmp_path))
    ran = milkrun(*place, "stop") if before else milkrun("stop", *place)
    assert (0, f"Stopped the engine (process {engine.pid}).\n") == (ran.returncode, ran.stdout)
    assert 0 == local._children.pop(engine.pid).wait(10)


def test_without_an_engine_there_is_nothing_to_stop_or_to_leave(tmp_path: Path) -> None:
    ran = milkrun("stop", "--data-dir", str(tmp_path / "none"))
    assert (0, f"No engine runs in {tmp_path / 'none'}.\n") == (ran.returncode, ran.stdout)
    assert [] == list(tmp_path.iterdir())


def test_an_engine_that_does_not_answer_is_told_from_none(tmp_path: Path) -> None:
    lock = DataDirLock(tmp_path)
    lock.acquire()
    ran = milkrun("stop", "--data-dir", str(tmp_path))
    lock.release()
    assert (1, "") == (ran.returncode, ran.stdout)
    assert "does not answer" in ran.stderr
