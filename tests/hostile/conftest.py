"""One application for all attacks. Every attack fails, so the application needs no reset between them.

Other directories test related attacks: tests/server those that need a socket (framing, limits of the server, slow clients),
tests/races concurrent requests, tests/auth/test_limits.py rate limits, tests/account/test_enumeration.py responses that reveal
accounts, and tests/auth/test_tokens.py forged access tokens. The application has no API keys, second factors, token
introspection, external logins or tokens in cookies.
"""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from starlette.types import Receive, Scope, Send

from app.core.db.database import Database
from app.core.db.keyset import CursorSigner
from app.core.observability.event_loop import Hold, HoldWatch
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.conftest import cloned, make_settings
from tests.core.conftest import recording  # noqa: F401  # A fixture.
from tests.factories import make_user
from tests.hostile.attack import BOUND, Target
from tests.volume import plain

# A part of the name of a file that each request runs through.
_REQUEST = "http/middleware.py"
EMAILS = {"user": "user@example.com", "admin": "admin@example.com"}


@pytest.fixture(scope="session")
async def target(template_url: str, hasher: PasswordHasher) -> AsyncIterator[Target]:
    """The application without rate limits, which would refuse the requests earlier."""
    async with cloned(template_url) as url:
        # The attacks come from a trusted proxy, so that `X-Forwarded-For` is read.
        trusted = ["127.0.0.1", "10.0.0.0/8"]
        settings = make_settings(url, rate_limit={"enabled": False}, server={"trusted_proxies": trusted})
        database = Database(settings.database)
        async with database.begin() as session:
            users = {role: await make_user(session, hasher, role=role, email=email) for role, email in EMAILS.items()}
        app = create_app(settings, database)
        async with app.router.lifespan_context(app) as state:

            async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
                await app({**scope, "state": dict(state or {})}, receive, send)

            watcher = await asyncpg.connect(plain(url))
            ids = {role: str(user.id) for role, user in users.items()}
            signer: CursorSigner = dict(state or {})["cursors"]
            attacked = Target(with_state, watcher, {}, ids, app.openapi(), signer)
            for role, email in EMAILS.items():
                attacked.tokens[role] = await attacked.log_in(email)
            yield attacked
            await watcher.close()
        await database.dispose()


@pytest.fixture(autouse=True)
async def nothing_holds_the_event_loop() -> AsyncIterator[None]:
    """Fail a test during which the code of a request holds the event loop for long.

    test_costs.py has the strict bound, for the best of several attempts. This bound is wider, because one attempt can be slow on a
    busy machine. It finds blocking calls, and input whose cost grows faster than its size.
    """
    holds: list[Hold] = []
    with HoldWatch(5 * BOUND, holds.append).running():
        yield
    # Tests run in the same event loop as the application.
    held = [f"{hold.seconds * 1000:.0f} ms in\n{hold.stack}" for hold in holds if _REQUEST in hold.stack]
    assert not held, "\n".join(held)
