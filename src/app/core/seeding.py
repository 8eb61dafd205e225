"""What the `seed.py` of a feature can use. It adds example data through the services, for `make seed`."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from app.core.config import Settings
from app.core.db.database import WriteSession
from app.core.security.hashing import PasswordHasher


@dataclass(frozen=True)
class Seeding:
    """The settings, and the example accounts. A feature runs after those before it in `FEATURES`."""

    settings: Settings
    hasher: PasswordHasher
    # The same accounts in the same order in each run. `users` adds their ids.
    account_ids: list[UUID] = field(default_factory=list)


type Seed = Callable[[WriteSession, Seeding], Awaitable[Sequence[str]]]
"""Adds what is missing, and returns a name of each thing that it has added."""
