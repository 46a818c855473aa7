"""
What one installation is: the ledger's own name, and whether its folder of blobs bears it.
"""

from collections.abc import Callable

from sqlalchemy import insert, select

from milkrun_engine.store.database import Database
from milkrun_engine.store.schema import secrets
from milkrun_engine.store.tenants import Tenants

LEDGER, MARKED = "ledger", "blobs are marked"  #: rows of `secrets`


class Installation:
    """The ledger's name."""

    def __init__(self, database: Database, tenants: Tenants) -> None:
        self._database = database
        self._tenants = tenants

    @property
    def id(self) -> str:
        """Names this ledger; made at the first call, and anew by a restore."""
        return as_id(self._tenants.secret(LEDGER))

    @property
    def has_marked(self) -> bool:
        """Whether some engine of this ledger has put its name into the folder of blobs."""
        with self._database.read() as connection:
            return connection.execute(select(secrets.c.name).where(secrets.c.name == MARKED)).first() is not None

    def mark_first(self, mark: Callable[[], None]) -> bool:
        """Call `mark` if no engine of this ledger ever did; whether this call did it. One process at a time."""
        with self._database.write() as connection:
            self._database.lock(connection, "installation")
            if connection.execute(select(secrets.c.name).where(secrets.c.name == MARKED)).first() is not None:
                return False
            mark()
            connection.execute(insert(secrets).values(name=MARKED, value=b""))
            return True


def as_id(value: bytes) -> str:
    """The ledger's name from its row of `secrets`."""
    return f"ledger_{value.hex()[:32]}"
