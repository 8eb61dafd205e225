"""Fixtures for the tests of second factors."""

import pytest
from httpx2 import AsyncClient

from app.core.config import Settings
from app.core.db.database import Database
from tests.auth.post import Post
from tests.conftest import LoggedIn
from tests.factors.phone import Enrolled, enrol


@pytest.fixture
def post(database: Database, settings: Settings) -> Post:
    """What the application mails."""
    return Post(database, settings)


@pytest.fixture
async def owner(client: AsyncClient, user: LoggedIn) -> Enrolled:
    """An ordinary account with a second factor."""
    return await enrol(client, user)
