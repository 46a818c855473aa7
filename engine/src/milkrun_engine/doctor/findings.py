"""
What a check says.
"""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    ok = "ok"
    warning = "warning"  #: works, and may surprise; the exit code stays 0
    wrong = "wrong"  #: does not work; the exit code is 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's."""

    check: str
    level: Level
    found: str
    do: str = ""  #: nothing when all is well


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check=check, level=Level.ok, found=found)


def warning(check: str, found: str, do: str) -> Finding:
    """Works, and may surprise."""
    return Finding(check=check, level=Level.warning, found=found, do=do)


def wrong(check: str, found: str, do: str) -> Finding:
    """Does not work."""
    return Finding(check=check, level=Level.wrong, found=found, do=do)
