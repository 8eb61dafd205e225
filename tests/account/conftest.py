"""Fixtures for the tests of accounts."""

import pytest

from app.auth.settings import AuthSettings
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database
from app.core.security.keys import load_key_ring
from app.jobs.queue import Work
from app.mail.mailer import Mailer
from app.mail.transports import MemoryTransport
from tests.auth.post import Post


@pytest.fixture
def post(database: Database, settings: Settings) -> Post:
    """What the application mails."""
    return Post(database, settings)


@pytest.fixture
def work(database: Database, settings: Settings) -> Work:
    """What a running job is given."""
    mailer = Mailer(MemoryTransport(), from_address="app@example.com", from_name=product.NAME)
    return Work(database, mailer, load_key_ring(settings.of(AuthSettings)), settings, request_id="r-12345678", key="k")
