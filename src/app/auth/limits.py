"""How often what may be tried. Successful logins do not count; a live session is never stopped by any of these."""

from datetime import timedelta
from uuid import UUID

from app.audit.service import Actor
from app.core.http.addresses import subscriber
from app.core.security.rate_limits import Counted, Limit
from app.users.emails import InvalidEmailError, identity

_QUARTER = timedelta(minutes=15)
_LOGIN_HERE = Limit("login-account-address", 10, _QUARTER)
_LOGIN_HERE_DAY = Limit("login-account-address-day", 100, timedelta(days=1))
# Others could keep the owner out by it, so the login decides: it lets the owner in from where they have logged in before.
_LOGIN_ACCOUNT = Limit("login-account", 100, timedelta(days=1), refuses=False)
_LOGIN_ADDRESS = Limit("login-address", 100, _QUARTER)
_PASSWORD_HERE = Limit("password-account-address", 10, _QUARTER)
_TOKEN_MISUSE = Limit("token-misuse-address", 100, _QUARTER)


def login(actor: Actor, username: str) -> tuple[Counted, ...]:
    """Count a login by account and address, by account, and by address; every spelling of an account is one."""
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
    """Count a password given again by somebody logged in."""
    return ((_PASSWORD_HERE, f"{user_id}\0{subscriber(actor.address)}"),)


def token_misuse(actor: Actor) -> tuple[Counted, ...]:
    """Count a refresh token or link that is not valid, by address."""
    return ((_TOKEN_MISUSE, subscriber(actor.address)),)
