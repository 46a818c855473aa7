"""
Numbered migrations, applied in order at start (Alembic).
"""

from pathlib import Path

from alembic import command
from alembic.config import Config

from milkrun_engine.store.database import Database


def migrate(database: Database) -> None:
    """Bring a database to the newest version; does nothing on one that is there. One process at a time does it."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with database.writer.connect() as connection:
        database.lock(connection, "migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
