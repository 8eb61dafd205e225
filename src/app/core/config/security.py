"""Settings for keys, password hashing and rate limits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, override

from pydantic import Field, SecretStr

from app.core.config.groups import SettingsGroup
from app.core.environment import usable_cores

_MIN_PRODUCTION_BCRYPT_COST = 10
_MAX_HASH_THREADS = 64


class KeySettings(SettingsGroup):
    """Private keys. The group `auth` inherits these settings."""

    signing_keys: SecretStr | None = None
    """Private keys for access tokens, as a JSON Web Key set. Create them with `app keys generate`."""
    signing_keys_file: Path | None = None
    """File with this key set."""

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if self.signing_keys is None and self.signing_keys_file is None:
            yield "APP_AUTH__SIGNING_KEYS or APP_AUTH__SIGNING_KEYS_FILE: is missing; create one with `app keys generate`"
        yield from super().unsafe_in_production()


class HashingSettings(SettingsGroup):
    """Passwords. The group `auth` inherits these settings."""

    password_hash: Literal["bcrypt", "argon2id"] = "bcrypt"
    """Scheme of new hashes: bcrypt over an HMAC-SHA-256 pre-hash, or argon2id."""
    bcrypt_cost: int = Field(default=12, ge=4, le=16)
    """Cost of bcrypt. One more doubles the time of a hash."""
    password_min_length: int = Field(default=15, ge=8, le=64)
    """Minimum password length, in code points."""
    breached_passwords_file: Path | None = None
    """File of passwords from known data breaches, which users cannot choose. It is the single sorted file of the Pwned
    Passwords downloader (`SHA1:COUNT` lines). The file is searched on disk, not loaded into memory."""
    hash_threads: int = Field(default=min(_MAX_HASH_THREADS, usable_cores()), ge=1, le=_MAX_HASH_THREADS)
    """Number of passwords hashed at the same time. Default: the CPU cores that the process may use, at most 64."""
    hash_queue: int = Field(default=32, ge=0, le=10_000)
    """Maximum number of passwords that wait for a hash thread. Further requests get 503."""

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if self.bcrypt_cost < _MIN_PRODUCTION_BCRYPT_COST:
            yield f"APP_AUTH__BCRYPT_COST: must be {_MIN_PRODUCTION_BCRYPT_COST} or more"
        yield from super().unsafe_in_production()


class RateLimitSettings(SettingsGroup):
    """Rate limits."""

    enabled: bool = True
    """Enforce the rate limits. Requests above a limit get 429. Production refuses to start without them."""

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if not self.enabled:
            yield "APP_RATE_LIMIT__ENABLED: must be true"
