"""Limits on requests that send mail."""

from datetime import timedelta

from app.audit.service import Actor
from app.core.http.addresses import subscriber
from app.core.schemas.emails import identity
from app.core.security.rate_limits import Counted, Limit

_MAIL_REQUESTS = Limit("mail-request-address", 30, timedelta(minutes=15))
_MAIL_MINUTE = Limit("mail-minute", 1, timedelta(minutes=1))
_MAIL_HOUR = Limit("mail-hour", 5, timedelta(hours=1))


def mail_request(actor: Actor) -> tuple[Counted, ...]:
    """Return the limit of requests that may send mail to any given address, by the address of the client."""
    return ((_MAIL_REQUESTS, subscriber(actor.address)),)


def mail(email: str) -> tuple[Counted, ...]:
    """Return the limits of mails to one address. The requests of all clients count together."""
    return ((_MAIL_MINUTE, identity(email)), (_MAIL_HOUR, identity(email)))
