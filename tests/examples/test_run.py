"""
The README's first command: the real model behind plain Python, a real Airflow, Dagster and Prefect.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from milkrun import local

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.engine, pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(1_200)]


def run(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MILKRUN_DATA_DIR": str(data_dir), "COLUMNS": "300"}
    command = [sys.executable, str(ROOT / "examples" / "run.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_four_routes_agree(tmp_path):
    """Its exit code says so: one typed error on each, every answer a label, and the same on all four."""
    try:
        done = run(tmp_path)
    finally:
        engine = local.find(tmp_path)
        if engine:
            stop = [str(Path(sys.executable).parent / "milkrun"), "stop", "--data-dir", str(tmp_path)]
            subprocess.run(stop, check=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-3_000:]
    table = done.stdout[done.stdout.index("One job on each route") :]
    for words in ("Python SDK", "Airflow", "Dagster", "Prefect", "deferred trigger", "suspended"):
        assert words in table
    assert engine is not None
    assert local.find(tmp_path) is None


def test_a_wrong_route_is_refused(tmp_path):
    done = run(tmp_path, "luigi")
    assert 2 == done.returncode
    assert "there are sdk, airflow, dagster, prefect" in done.stderr
