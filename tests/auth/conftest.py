"""What the tests of logins and tokens share."""

import pytest

from app.core.config import Settings
from app.core.database import Database
from tests.auth.forge import Forge, signing_jwk
from tests.auth.post import Post
from tests.conftest import KEY_SET, LoggedIn


@pytest.fixture
def forge(user: LoggedIn) -> Forge:
    """A forge that starts from the valid token of `user`, and holds the application's own key."""
    return Forge(user.headers["Authorization"].removeprefix("Bearer "), signing_jwk(KEY_SET))


@pytest.fixture
def post(database: Database, settings: Settings) -> Post:
    """What the application mails."""
    return Post(database, settings)
