"""The statements that an operation sends to the database."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event

from app.core.db.database import Database

_SAVEPOINT = re.compile(r"sa_savepoint_\d+")


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Note every statement that reaches the database."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        # Numbered through the test's one connection.
        seen.append(_SAVEPOINT.sub("savepoint", statement))

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    yield seen
    event.remove(database.engine.sync_engine, "before_cursor_execute", note)
