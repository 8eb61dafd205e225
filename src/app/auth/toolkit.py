"""The stateful parts that the services of auth and account share. The lifespan makes them once."""

from dataclasses import dataclass

from app.auth.access.tokens import AccessTokens
from app.auth.second_factor import SecondFactor
from app.core.config import Settings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import KeyRing
from app.core.security.rate_limits import RateLimiter


@dataclass(frozen=True, slots=True)
class Toolkit:
    """Everything with state that a service needs; the services themselves are functions."""

    settings: Settings
    database: Database
    keys: KeyRing
    hasher: PasswordHasher
    access_tokens: AccessTokens
    limiter: RateLimiter
    second_factor: "SecondFactor[Toolkit]"
