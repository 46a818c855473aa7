"""
The promises are kept, and their faults caught, on both databases.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from checker import Place
from fix_store import World


@pytest.fixture
def world(place: Place, tmp_path: Path) -> Iterator[World]:
    """One new ledger."""
    opened = World.open(tmp_path, place.database if isinstance(place.database, str) else None)
    yield opened
    opened.close()
