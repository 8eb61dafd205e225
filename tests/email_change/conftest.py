"""Fixtures for the tests of changed addresses."""

import pytest

from app.core.config import Settings
from app.core.db.database import Database
from tests.auth.post import Post


@pytest.fixture
def post(database: Database, settings: Settings) -> Post:
    """What the application mails."""
    return Post(database, settings)
