"""
Posts: what one process at a time may do. A lease on the database's clock elects it.

Nothing rests on there being one holder: a former one that has not noticed finds its chunks' leases lost. It keeps
two processes from loading the same models, and from taking each other's work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, insert, or_, select, update

from milkrun_engine.store.database import Database, transaction
from milkrun_engine.store.schema import posts

DISPATCHER = "dispatcher"


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A post as it stands: who has it, since which change of hands, and what the holder tells."""

    holder: str
    term: int
    facts: Mapping[str, Any]


class Posts:
    """Take, keep and leave a post."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @transaction
    def take(self, name: str, me: str, seconds: float, facts: Mapping[str, Any]) -> Post:
        """Take or keep a post for so long, if nobody else has it; returns it as it stands then."""
        with self._database.write() as connection:
            taken = connection.execute(
                update(posts)
                .where(posts.c.name == name, or_(posts.c.holder == me, posts.c.expires_at < self._database.now))
                .values(
                    holder=me,
                    term=case((posts.c.holder == me, posts.c.term), else_=posts.c.term + 1),
                    expires_at=self._database.now + seconds,
                    facts=facts,
                )
            )
            if not taken.rowcount:
                self._database.lock(connection, f"post {name}")
                if connection.execute(select(posts.c.name).where(posts.c.name == name)).first() is None:
                    until = self._database.now + seconds
                    connection.execute(
                        insert(posts).values(name=name, holder=me, term=1, expires_at=until, facts=facts)
                    )
            row = connection.execute(select(posts).where(posts.c.name == name)).one()
        return Post(holder=row.holder, term=row.term, facts=row.facts)

    @transaction
    def leave(self, name: str, me: str | None = None) -> None:
        """Give a post up, so that another may take it at once; without a name of the holder, whoever has it."""
        with self._database.write() as connection:
            mine = () if me is None else (posts.c.holder == me,)
            connection.execute(update(posts).where(posts.c.name == name, *mine).values(expires_at=0.0))
