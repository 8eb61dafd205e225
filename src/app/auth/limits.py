"""Limits on guessing passwords and tokens. Successful attempts do not count, and no limit stops a live session."""

from datetime import timedelta
from uuid import UUID

from app.audit.service import Actor
from app.core.http.addresses import subscriber
from app.core.schemas.emails import InvalidEmailError, identity
from app.core.security.rate_limits import Counted, Limit

_QUARTER = timedelta(minutes=15)
_LOGIN_HERE = Limit("login-account-address", 10, _QUARTER)
_LOGIN_HERE_DAY = Limit("login-account-address-day", 100, timedelta(days=1))
# Does not refuse by itself: attackers could lock the owner out. The login still accepts the owner from known addresses.
_LOGIN_ACCOUNT = Limit("login-account", 100, timedelta(days=1), refuses=False)
_LOGIN_ADDRESS = Limit("login-address", 100, _QUARTER)
_PASSWORD_HERE = Limit("password-account-address", 10, _QUARTER)
_TOKEN_MISUSE = Limit("token-misuse-address", 100, _QUARTER)


def login(actor: Actor, username: str) -> tuple[Counted, ...]:
    """Count a login by account and address, by account, and by address. All spellings of an account count as one."""
    try:
        account = identity(username)
    except InvalidEmailError:
        account = username
    return (
        (_LOGIN_HERE, f"{account}\0{subscriber(actor.address)}"),
        (_LOGIN_HERE_DAY, f"{account}\0{subscriber(actor.address)}"),
        (_LOGIN_ACCOUNT, account),
        (_LOGIN_ADDRESS, subscriber(actor.address)),
    )


def password(actor: Actor, user_id: UUID) -> tuple[Counted, ...]:
    """Count a password that a logged-in client gives again."""
    return ((_PASSWORD_HERE, f"{user_id}\0{subscriber(actor.address)}"),)


def token_misuse(actor: Actor) -> tuple[Counted, ...]:
    """Count an invalid refresh token or link, by address."""
    return ((_TOKEN_MISUSE, subscriber(actor.address)),)
