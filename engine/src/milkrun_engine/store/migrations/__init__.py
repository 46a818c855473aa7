"""
Numbered migrations, applied in order at start (Alembic).
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from milkrun_engine.store.database import Database, unhurried

_FOLDER = Path(__file__).parent


class LedgerTooNew(ValueError):
    """The ledger was made by a newer version of the engine; the message says so."""

    def __init__(self, revision: str) -> None:
        super().__init__(
            f"the ledger is of a newer version of Milkrun (migration {revision}, this one ends at {head()}); "
            "install that version: an older one can't read it"
        )


def migrate(database: Database) -> None:
    """
    Bring a database to the newest version; does nothing on one that is there. One process at a time does it.

    Raises:
        LedgerTooNew: a newer version of the engine made it.
    """
    with database.writer.connect() as connection, unhurried(connection):
        database.lock(connection, "migrations")
        upgrade(connection)
        connection.commit()


def upgrade(connection: Connection) -> None:
    """
    Migrate within a transaction of the caller's.

    Raises:
        LedgerTooNew: a newer version of the engine made it.
    """
    config = _config()
    found = revision(connection)
    if found is not None and found not in known():
        raise LedgerTooNew(found)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def revision(connection: Connection) -> str | None:
    """The last migration of a database; None for one that holds no ledger."""
    return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """The last migration that this version knows."""
    found = _scripts().get_current_head()
    assert found is not None
    return found


def known() -> list[str]:
    """The migrations of this version."""
    return [script.revision for script in _scripts().walk_revisions()]


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    return config
