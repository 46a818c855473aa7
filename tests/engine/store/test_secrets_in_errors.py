"""
What the ledger's errors say: they are logged, so they name no value.
"""

import pytest
from fix_store import World
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

SECRET = "a prompt that nobody else may read"


def test_an_error_of_the_database_quotes_no_parameter(world: World) -> None:
    with pytest.raises(DBAPIError) as raised, world.store.database.write() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (:prompt)"), {"prompt": SECRET})
    assert SECRET not in str(raised.value)
