"""Limits on changes of address."""

from datetime import timedelta
from uuid import UUID

from app.account import limits
from app.core.security.rate_limits import Counted, Limit

_EMAIL_CHANGES = Limit("email-change-account", 5, timedelta(hours=1))


def email_change(user_id: UUID, email: str) -> tuple[Counted, ...]:
    """Return the limits of requested changes of address: by account, and those of mails to the new address."""
    return ((_EMAIL_CHANGES, str(user_id)), *limits.mail(email))
