"""
The checkout is what its documents say: top level, versions, licences, README, settings, pins.
"""

import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from milkrun.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
INTEGRATIONS = {"airflow_provider", "dagster_integration", "prefect_integration"}
TOP = {"pyproject.toml", "README.md", "LICENSE", "core", "engine", "tests", "examples", *INTEGRATIONS}
DISTRIBUTIONS = sorted(path.parent for path in ROOT.glob("*/pyproject.toml"))


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def project(folder: Path) -> dict[str, object]:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def first_block(heading: str) -> str:
    readme = (ROOT / "README.md").read_text()
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    assert section
    block = re.search(r"^```\w*\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    assert block
    return block[1].strip()


@pytest.fixture(scope="module")
def needs_git() -> None:
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("an export without git's index")


def test_top_level_is_short(needs_git: None) -> None:
    """Nothing but the agreed names stands at the top, apart from dotfiles."""
    top = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".")} == TOP


def test_versions_agree() -> None:
    """All distributions carry one version, and ask for that version of each other."""
    assert len({project(folder)["version"] for folder in DISTRIBUTIONS}) == 1
    version = project(ROOT / "core")["version"]
    for folder in DISTRIBUTIONS:
        for requirement in project(folder)["dependencies"]:  # type: ignore[attr-defined]
            if re.match(r"milkrun(-engine)?\b", requirement):
                assert requirement.endswith(f"~={version}")


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)
def test_distribution_is_complete(folder: Path) -> None:
    """Each distribution has a readme, the licence, and says that it is typed."""
    assert (folder / "README.md").is_file()
    assert (ROOT / "LICENSE").read_bytes() == (folder / "LICENSE").read_bytes()
    assert list(folder.glob("src/*/py.typed"))


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_readme_command_exists(heading: str) -> None:
    """The first block under the heading is one command, whose script exists."""
    lines = first_block(heading).splitlines()
    assert len(lines) == 1
    python, script = lines[0].split()
    assert python == "python3"
    assert (ROOT / script).is_file()


def test_ci_runs_the_readme_command(tmp_path: Path) -> None:
    """`.ci/run` takes its command from the README and hands its exit code on."""
    (tmp_path / ".ci").mkdir()
    runner = tmp_path / ".ci" / "run"
    runner.write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "README.md").write_text(
        "## Run it\n```sh\nexit 1\n```\n## Test it\n\n```sh\nexit 7\n```\n```sh\nno\n```\n"
    )
    done = subprocess.run(["bash", str(runner)], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stdout == "+ exit 7\n"


@pytest.mark.engine
def test_every_setting_is_in_the_readme() -> None:
    """README names each setting that client and engine read from the environment."""
    from milkrun_engine.settings import EngineSettings

    readme = (ROOT / "README.md").read_text()
    names = {field.name for kind in (Settings, EngineSettings) for field in dataclasses.fields(kind)} - {"is_local"}
    assert {name for name in names if f"`MILKRUN_{name.upper()}`" not in readme} == set()


def test_no_machine_and_no_registry_in_the_tree(needs_git: None) -> None:
    """No file names a package registry's host, or a folder of somebody's machine."""
    words = ("pypi" + ".org", "python" + "hosted", "/ro" + "ot/", "/wo" + "rk/", "/opt/" + "wheels")
    guilty = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked()
        for word in words
        if word.encode() in path.read_bytes()
    ]
    assert guilty == []


@pytest.mark.parametrize("name", ["core", "engine", "airflow", "dagster", "prefect"])
def test_pins_are_whole(name: str) -> None:
    """Each line of a pinned file is one exact version."""
    lines = (ROOT / "tests" / "environments" / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if not line.lstrip().startswith("#")]
    assert pins
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.+-]+", line)] == []


def test_environment_script_speaks_to_older_pythons() -> None:
    """The bootstrap scripts parse under Python 3.8, so that the wrong python3 gets a clear answer."""
    import ast

    for script in ("tests/run.py", "tests/environments/environments.py", "examples/run.py"):
        ast.parse((ROOT / script).read_text(), feature_version=(3, 8))
    assert sys.version_info[:2] == (3, 11)
