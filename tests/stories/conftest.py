"""
Servers for stories: real processes, gone with the test.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from stories.server import Server


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers, each on a folder of its own; see `Server` for the arguments."""
    with ExitStack() as stack:

        def start(**arguments: Any) -> Server:
            return stack.enter_context(Server(tmp_path_factory.mktemp("server"), **arguments))

        yield start
