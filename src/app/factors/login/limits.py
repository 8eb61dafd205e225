"""Limits on guessing second factors. They are counters of their own: a right password resets none of them.

A person who guesses here has the password or a session of the account, and can use up the guesses of its owner. A new password ends
both, and sets the counters of the account to zero. So does the removal of the factor, because the next one has another secret.
"""

from datetime import timedelta
from uuid import UUID

from app.audit.service import Actor
from app.core.http.addresses import subscriber
from app.core.security.rate_limits import Counted, Limit, RateLimiter

_QUARTER_HOUR = timedelta(minutes=15)
_ACCOUNT = Limit("mfa-account", 10, _QUARTER_HOUR)
_ACCOUNT_DAY = Limit("mfa-account-day", 100, timedelta(days=1))
_ADDRESS = Limit("mfa-address", 100, _QUARTER_HOUR)
# They refuse nothing. They decide about the mail to the owner: the fifth wrong code of a day sends one, and a day has one mail.
# They count over all logins and sessions: a person who guesses can begin many, and guess less than five times in each.
_WRONG_DAY = Limit("mfa-wrong-account-day", 4, timedelta(days=1), refuses=False)
_MAIL_DAY = Limit("mfa-mail-account-day", 1, timedelta(days=1), refuses=False)

# Maximum number of guesses for one login.
GUESSES_PER_LOGIN = 5


def guess(actor: Actor, user_id: UUID) -> tuple[Counted, ...]:
    """Return the limits of a guess: by account, by account in a day, and by address of the client."""
    return (_ACCOUNT, str(user_id)), (_ACCOUNT_DAY, str(user_id)), *unknown_login(actor)


def of_account(user_id: UUID) -> tuple[Counted, ...]:
    """Return the counters that belong to an account alone."""
    return tuple((limit, str(user_id)) for limit in (_ACCOUNT, _ACCOUNT_DAY, _WRONG_DAY, _MAIL_DAY))


def unknown_login(actor: Actor) -> tuple[Counted, ...]:
    """Return the limit of a guess for a login that does not wait: it belongs to no account."""
    return ((_ADDRESS, subscriber(actor.address)),)


async def needs_mail(limiter: RateLimiter, user_id: UUID) -> bool:
    """Count a wrong code, and return whether the owner must hear of it."""
    subject = str(user_id)
    has_many = await limiter.hit((_WRONG_DAY, subject)) is not None
    return has_many and await limiter.hit((_MAIL_DAY, subject)) is None
