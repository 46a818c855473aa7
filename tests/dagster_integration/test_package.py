"""The package is what its README says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import dagster_milkrun
from milkrun import local

README = (Path(__file__).resolve().parents[2] / "dagster_integration" / "README.md").read_text()


def test_the_readmes_lines_run(engine: local.EngineFile, monkeypatch: pytest.MonkeyPatch, tell: Any) -> None:
    """Against an engine whose address and key come from the environment."""
    monkeypatch.setenv("MILKRUN_URL", engine.url)
    monkeypatch.setenv("MILKRUN_API_KEY", engine.api_key)
    block = re.search(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert block
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block[1], "README.md", "exec"), namespace)  # the file is our own
    job = namespace["defs"].resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=dg.DagsterInstance.ephemeral())
    assert set(result.output_for_node("moods")["output"]) <= {"positive", "negative"}


def test_every_option_is_in_the_readme() -> None:
    own = set(dagster_milkrun.options.InferOptions.__annotations__) | set(
        dagster_milkrun.options.MilkrunOptions.__annotations__
    )
    assert {name for name in own if f"`{name}`" not in README} == set()


def test_public_names_are_the_agreed_ones() -> None:
    assert dagster_milkrun.__all__ == sorted(dagster_milkrun.__all__)
    assert all(hasattr(dagster_milkrun, name) for name in dagster_milkrun.__all__)


def test_private_parts_of_dagster_are_met_in_one_module() -> None:
    folder = Path(dagster_milkrun.__file__).parent
    guilty = [path.name for path in folder.glob("*.py") if re.search(r"(from|import) dagster\._", path.read_text())]
    assert guilty == ["_host.py"]


def test_importing_the_package_imports_no_frame_library() -> None:
    """A code location without polars or pandas loads."""
    code = "import sys, dagster_milkrun; print([n for n in ('polars', 'pandas', 'pyarrow') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
