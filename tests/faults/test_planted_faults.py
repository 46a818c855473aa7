"""
Ten planted faults: each is a patch of the engine that its one test catches, and none is caught without it.

A patch in `patches/` begins with the fault in a sentence and the name of its test in
`test_promises.py`. It is applied to a temporary copy of the engine's source, and the test
runs in a process of its own that imports the copy; on each database.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import milkrun_engine

pytestmark = [pytest.mark.engine, pytest.mark.slow]
HERE = Path(__file__).parent
PATCHES = sorted((HERE / "patches").glob("*.patch"))
SECONDS_A_TEST = 30
OVERHEAD_SECONDS = 60  # to begin pytest and import the engine on a busy machine
_HEADER = re.compile(r"Fault: (.+)\nTest: (\w+)\n")


def _test_of(patch: Path) -> str:
    header = _HEADER.match(patch.read_text())
    assert header, f"{patch.name} does not begin with its fault and its test"
    return header[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The engine's source, to be patched."""
    source = Path(milkrun_engine.__file__).parent
    shutil.copytree(source, tmp_path / "src" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "src"


def _run(copy: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(copy), *filter(None, [os.environ.get("PYTHONPATH")])])
    named = [f"{HERE / 'test_promises.py'}::{test}" for test in tests]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *named],
        env={**os.environ, "PYTHONPATH": path}, cwd=HERE.parent.parent,
        capture_output=True, text=True, timeout=len(tests) * SECONDS_A_TEST + OVERHEAD_SECONDS, check=False,
    )  # fmt: skip


def test_each_fault_has_a_test_of_its_own() -> None:
    """Ten patches, ten tests."""
    assert 10 == len({_test_of(patch) for patch in PATCHES})


def test_no_test_fails_without_its_fault(copy: Path) -> None:
    """The ten tests pass on an unpatched copy."""
    done = _run(copy, [_test_of(patch) for patch in PATCHES])
    assert pytest.ExitCode.OK == done.returncode, done.stdout


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_fault_is_caught(copy: Path, patch: Path) -> None:
    """The fault's test fails on the patched copy, for its assertion and within its time."""
    applied = subprocess.run(
        ["git", "apply", "--verbose", str(patch)], cwd=copy, capture_output=True, text=True, check=False,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)},
    )  # fmt: skip
    assert 0 == applied.returncode, f"the engine has moved on; make the patch again:\n{applied.stderr}"
    began = time.monotonic()
    done = _run(copy, [_test_of(patch)])
    assert pytest.ExitCode.TESTS_FAILED == done.returncode, f"the fault was not caught:\n{done.stdout}"
    assert "passed" not in done.stdout.splitlines()[-1], f"the fault was not caught on each database:\n{done.stdout}"
    assert re.search(r"^E +(assert|AssertionError)", done.stdout, re.MULTILINE), done.stdout
    assert time.monotonic() - began < SECONDS_A_TEST + OVERHEAD_SECONDS
