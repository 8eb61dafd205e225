"""Limits on guessing passwords and tokens. Successful attempts do not count, and no limit stops a live session."""

from datetime import timedelta
from uuid import UUID

from app.audit.service import Actor
from app.core.http.addresses import subscriber
from app.core.schemas.emails import InvalidEmailError, identity
from app.core.security.rate_limits import Counted, Limit

_QUARTER_HOUR = timedelta(minutes=15)
_LOGIN_ACCOUNT_ADDRESS = Limit("login-account-address", 10, _QUARTER_HOUR)
_LOGIN_ACCOUNT_ADDRESS_DAY = Limit("login-account-address-day", 100, timedelta(days=1))
# Does not refuse by itself: attackers could lock the owner out. The login still accepts the owner from known addresses.
_LOGIN_ACCOUNT = Limit("login-account", 100, timedelta(days=1), refuses=False)
_LOGIN_ADDRESS = Limit("login-address", 100, _QUARTER_HOUR)
_PASSWORD_ACCOUNT_ADDRESS = Limit("password-account-address", 10, _QUARTER_HOUR)
_CODE_ACCOUNT_ADDRESS = Limit("code-account-address", 10, _QUARTER_HOUR)
# Otherwise a person who can set passwords, but has no code, could guess without an end.
_CODE_RESTART_DAY = Limit("code-restart-account-day", 2, timedelta(days=1), refuses=False)
_TOKEN_MISUSE = Limit("token-misuse-address", 100, _QUARTER_HOUR)


def login(actor: Actor, username: str) -> tuple[Counted, ...]:
    """Return the limits of a login: by account and address, by account, and by address. All spellings of an account count together."""
    return *of_account(actor, username), (_LOGIN_ADDRESS, subscriber(actor.address))


def of_account(actor: Actor, username: str) -> tuple[Counted, ...]:
    """Return the limits of a login that belong to an account: those that another person can use up."""
    try:
        account = identity(username)
    except InvalidEmailError:
        account = username
    return (
        (_LOGIN_ACCOUNT_ADDRESS, f"{account}\0{subscriber(actor.address)}"),
        (_LOGIN_ACCOUNT_ADDRESS_DAY, f"{account}\0{subscriber(actor.address)}"),
        (_LOGIN_ACCOUNT, account),
    )


def password(actor: Actor, user_id: UUID) -> tuple[Counted, ...]:
    """Return the limit of passwords that a logged-in client gives again, by account and address."""
    return ((_PASSWORD_ACCOUNT_ADDRESS, f"{user_id}\0{subscriber(actor.address)}"),)


def code(actor: Actor, user_id: UUID) -> tuple[Counted, ...]:
    """Return the limit of codes that a logged-in client gives where no account has a second factor: it bounds the audit events."""
    return ((_CODE_ACCOUNT_ADDRESS, f"{user_id}\0{subscriber(actor.address)}"),)


def code_restart(user_id: UUID, by: str) -> tuple[Counted, ...]:
    """Return the limit of new passwords that give new guesses of codes.

    A change and a reset have a counter each: a thief of the password and of a session can change the password, and must not use up
    what a reset gives its owner.
    """
    return ((_CODE_RESTART_DAY, f"{by}\0{user_id}"),)


def token_misuse(actor: Actor) -> tuple[Counted, ...]:
    """Return the limit of invalid refresh tokens and links, by address."""
    return ((_TOKEN_MISUSE, subscriber(actor.address)),)
