"""Resources of logins and tokens that live as long as the web process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.auth import second_factor
from app.auth.access.revocation import RevocationListener
from app.auth.access.session_watch import SessionWatches
from app.auth.access.token_status import TokenStatusCheck
from app.auth.access.tokens import AccessTokens
from app.auth.settings import AuthSettings, issuer
from app.auth.toolkit import Toolkit
from app.core.resources import Foundation, Resources
from app.core.security.hashing import PasswordHasher
from app.core.security.rate_limits import make_rate_limiter


@asynccontextmanager
async def open_for_web(core: Foundation) -> AsyncIterator[Resources]:
    """Start the threads that hash passwords and, if `access_check` is `memory`, the revocation listener."""
    settings = core.settings.of(AuthSettings)
    hasher = PasswordHasher(settings)
    listener = RevocationListener(core.settings.database) if settings.access_check == "memory" else None
    watches = SessionWatches(core.database, listener, core.shutdown, per_account=settings.streams_per_account)
    if listener:
        listener.start()
    try:
        async with watches.running():
            yield Resources(
                state={
                    "auth": _toolkit(core, hasher),
                    "token_status": TokenStatusCheck(core.database, listener, settings),
                    "session_watches": watches,
                },
                instruments=[hasher.readings, *([listener.readings] if listener else [])],
                readiness=[listener.unready] if listener else [],
            )
    finally:
        if listener:
            await listener.stop()
        hasher.close()


def _toolkit(core: Foundation, hasher: PasswordHasher) -> Toolkit:
    settings = core.settings.of(AuthSettings)
    return Toolkit(
        settings=core.settings,
        database=core.database,
        keys=core.keys,
        hasher=hasher,
        access_tokens=AccessTokens(
            core.keys,
            issuer=issuer(core.settings),
            audience=settings.audience,
            lifetime=int(settings.access_token_ttl.total_seconds()),
        ),
        limiter=make_rate_limiter(core.database, core.keys, core.settings),
        second_factor=second_factor.installed(),
    )
