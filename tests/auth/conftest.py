"""Fixtures for the tests of logins and tokens."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from httpx2 import AsyncClient

from app.auth.access import revocation
from app.core.config import Settings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.auth.forge import Forge, signing_jwk
from tests.auth.post import Post
from tests.conftest import KEY_SET, LoggedIn, cloned, log_in, make_settings, running
from tests.factories import make_user

_LONGER_THAN_A_TEST = 600


def forge_for(headers: dict[str, str]) -> Forge:
    return Forge(headers["Authorization"].removeprefix("Bearer "), signing_jwk(KEY_SET))


@pytest.fixture
def forge(user: LoggedIn) -> Forge:
    """A forge that starts from the valid token of `user`, and holds the application's own key."""
    return forge_for(user.headers)


@pytest.fixture
def post(database: Database, settings: Settings) -> Post:
    """What the application mails."""
    return Post(database, settings)


@dataclass(frozen=True)
class Target:
    """An application, and a forge that starts from a valid token of it."""

    client: AsyncClient
    forge: Forge


@pytest.fixture(scope="module")
async def target(template_url: str, hasher: PasswordHasher) -> AsyncIterator[Target]:
    """What a whole module attacks: every attack fails, so nothing needs undoing between two of them."""
    async with cloned(template_url) as url:
        settings = make_settings(url)
        database = Database(settings.database)
        async with database.begin() as session:
            account = await make_user(session, hasher)
        async with running(create_app(settings, database)) as client:
            yield Target(client, forge_for(await log_in(client, account.email)))
        await database.dispose()


@pytest.fixture
def without_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes learn of revocations by notification alone: they poll only when a notification says so."""
    for interval in ("POLL_INTERVAL", "MAX_AGE"):
        monkeypatch.setattr(revocation, interval, _LONGER_THAN_A_TEST)
