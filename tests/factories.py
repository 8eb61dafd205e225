"""Rows for tests. They are valid by default and contain no random values."""

from datetime import UTC, datetime
from itertools import count
from typing import Any

from app.core.db.database import WriteSession
from app.core.schemas.emails import identity
from app.core.security.hashing import PasswordHasher
from app.users.models import User
from app.users.roles import granted

PASSWORD = "correct horse battery staple"
# The scopes of an administrator's token, unless the login requests fewer.
ADMINISTRATION = " ".join(sorted(granted("admin")))
_numbers = count(1)


async def make_user(session: WriteSession, hasher: PasswordHasher | None = None, **overrides: Any) -> User:
    """Add an active, verified account. With a `hasher`, its password is `PASSWORD`."""
    email = overrides.pop("email", f"user{next(_numbers)}@example.com")
    password = overrides.pop("password", PASSWORD)
    values = {
        "email": email,
        "email_key": identity(email),
        "hashed_password": await hasher.hash(password) if hasher else None,
        "email_verified_at": datetime(2026, 1, 1, tzinfo=UTC),
        **overrides,
    }
    user = User(**values)
    session.add(user)
    await session.flush()
    return user
