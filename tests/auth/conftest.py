"""What the tests of logins and tokens share."""

import pytest

from tests.auth.forge import Forge, signing_jwk
from tests.conftest import KEY_SET, LoggedIn


@pytest.fixture
def forge(user: LoggedIn) -> Forge:
    """A forge that starts from the valid token of `user`, and holds the application's own key."""
    return Forge(user.headers["Authorization"].removeprefix("Bearer "), signing_jwk(KEY_SET))
