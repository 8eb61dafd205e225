"""An application with a separate database and real connections."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.auth.post import PATIENT, Post
from tests.conftest import make_settings, running
from tests.races.site import Site
from tests.volume import plain


@pytest.fixture
async def site(clone_url: str, hasher: PasswordHasher) -> AsyncIterator[Site]:
    """The application with ten connections for writing and ten for reading."""
    # All clients here have one address.
    settings = make_settings(clone_url, rate_limit={"enabled": False}, database=PATIENT)
    database = Database(settings.database)
    watcher = await asyncpg.connect(plain(clone_url))
    async with running(create_app(settings, database)) as client:
        yield Site(client, database, hasher, watcher, Post(database, settings))
    await watcher.close()
    await database.dispose()
