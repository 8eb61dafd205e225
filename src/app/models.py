"""Every feature's models, so that the metadata is whole; a new feature adds its own here."""

from app.audit.models import AuditEvent
from app.auth.models import LoginSession, Revocation, SessionCutoff
from app.core.db.database import Base
from app.core.security.rate_limits import RateLimit
from app.jobs.models import JobError
from app.users.models import AccountLink, User

__all__ = [
    "AccountLink",
    "AuditEvent",
    "Base",
    "JobError",
    "LoginSession",
    "RateLimit",
    "Revocation",
    "SessionCutoff",
    "User",
]
