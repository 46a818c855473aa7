"""
Tenants with their keys, and the secrets that an installation makes for itself.
"""

import hashlib
import secrets as random

from sqlalchemy import insert, select, update

from milkrun_engine.domain.ids import new_id
from milkrun_engine.store.database import Database, scalar
from milkrun_engine.store.schema import api_keys, secrets, tenants

DEFAULT_TENANT = "default"


def new_key() -> str:
    """Make an API key: 256 random bits behind a prefix that secret scanners can know."""
    return f"mk_{random.token_urlsafe(32)}"


def key_sha256(key: str) -> str:
    """What is stored of a key; keys are long and random, so one plain hash is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


class Tenants:
    """Who may call, and on whose behalf."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ensure(self, tenant_id: str = DEFAULT_TENANT) -> None:
        """Make a tenant if it does not exist."""
        with self._database.write() as connection:
            self._database.lock(connection, "installation")
            if connection.execute(select(tenants.c.id).where(tenants.c.id == tenant_id)).first() is None:
                connection.execute(insert(tenants).values(id=tenant_id, feed_id=new_id("feed")))

    def add_key(self, key: str, name: str, tenant_id: str = DEFAULT_TENANT) -> None:
        """Let a key in, in the place of the tenant's former keys of that name; one that was taken out comes back."""
        digest = key_sha256(key)
        with self._database.write() as connection:
            self._database.lock(connection, "installation")
            former = (api_keys.c.tenant_id == tenant_id, api_keys.c.name == name, api_keys.c.sha256 != digest)
            connection.execute(update(api_keys).where(*former).values(revoked_at=self._database.now))
            mine = (api_keys.c.tenant_id == tenant_id, api_keys.c.sha256 == digest)
            connection.execute(update(api_keys).where(*mine).values(revoked_at=None))
            if connection.execute(select(api_keys.c.id).where(api_keys.c.sha256 == digest)).first() is None:
                now = scalar(connection, self._database.now)
                connection.execute(
                    insert(api_keys).values(
                        id=new_id("key"), tenant_id=tenant_id, name=name, sha256=digest, created_at=now
                    )
                )

    def of_key(self, key: str) -> str | None:
        """The tenant of a key that is let in."""
        with self._database.read() as connection:
            query = select(api_keys.c.tenant_id).where(
                api_keys.c.sha256 == key_sha256(key), api_keys.c.revoked_at.is_(None)
            )
            return connection.execute(query).scalar_one_or_none()

    def secret(self, name: str) -> bytes:
        """A random secret of this installation, made at the first call."""
        with self._database.write() as connection:
            self._database.lock(connection, "installation")
            value = connection.execute(select(secrets.c.value).where(secrets.c.name == name)).scalar_one_or_none()
            if value is None:
                value = random.token_bytes(32)
                connection.execute(insert(secrets).values(name=name, value=value))
            return bytes(value)
