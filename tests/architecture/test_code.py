"""
The code is what its documents say: public names, import rules, errors, settings.
"""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import milkrun
from milkrun import wire
from milkrun.status import RowErrorCode

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(ROOT.glob("*/src/**/*.py"))
pytestmark = pytest.mark.engine


def code_table(heading: str) -> dict[str, str]:
    """First column (code names) to the rest of the line, of a table in the engine's README."""
    readme = (ROOT / "engine" / "README.md").read_text()
    section = readme[readme.index(heading) :].split("\n\n")[1]
    rows = [line.strip("| ").split(" | ", 1) for line in section.splitlines()[2:]]
    return {name: rest for names, rest in rows for name in re.findall(r"`(\w+)`", names)}


def test_public_names_are_sorted_and_there() -> None:
    """`__all__`, wherever there is one."""
    import milkrun_engine

    for package in (milkrun, milkrun_engine):
        names = [
            module.name for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.") if module.ispkg
        ]
        for module in map(importlib.import_module, [package.__name__, *names]):
            public = getattr(module, "__all__", [])
            assert sorted(public) == public, module
            assert [name for name in public if not hasattr(module, name)] == []


def test_every_problem_is_documented_with_its_status() -> None:
    from milkrun_engine.api.native.errors import STATUS

    expected = {error.code: status for error, status in STATUS.items()} | {"internal": 500}
    table = code_table("Every refusal is a problem")
    assert {code: int(rest.split(" | ")[0]) for code, rest in table.items()} == expected


def test_the_contract_names_every_problem() -> None:
    """The docstring of `wire.Problem` is what other clients' authors read."""
    from milkrun_engine.api.native.errors import STATUS

    listed = (wire.Problem.__doc__ or "").split("look at:")[1]
    assert set(re.findall(r"\w+", listed)) == {error.code for error in STATUS} | {"internal"}


def test_every_row_error_is_documented() -> None:
    assert set(code_table("A row that has no output")) == {code.value for code in RowErrorCode}


def test_every_variable_that_is_read_is_documented() -> None:
    """Also those that are no setting, such as the log level."""
    readme = (ROOT / "README.md").read_text()
    named = {name for path in SOURCES for name in re.findall(r"MILKRUN_[A-Z]+(?:_[A-Z]+)*", path.read_text())}
    assert {name for name in named if f"`{name}`" not in readme} == set()
