"""Settings of keys, password hashing and rate limits."""

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

    signing_keys: SecretStr | None = Field(
        default=None, description="Private keys for access tokens as a JSON Web Key set, made by `app keys generate`."
    )
    signing_keys_file: Path | None = Field(default=None, description="The same from a file.")

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if self.signing_keys is None and self.signing_keys_file is None:
            yield "APP_AUTH__SIGNING_KEYS or APP_AUTH__SIGNING_KEYS_FILE: is missing; make one with `app keys generate`"
        yield from super().unsafe_in_production()


class HashingSettings(SettingsGroup):
    """Passwords. The group `auth` inherits these settings."""

    password_hash: Literal["bcrypt", "argon2id"] = Field(
        default="bcrypt", description="Scheme of new hashes: bcrypt over an HMAC-SHA-256 pre-hash, or argon2id."
    )
    bcrypt_cost: int = Field(default=12, ge=4, le=16, description="Work factor of bcrypt: one more doubles the time.")
    password_min_length: int = Field(default=15, ge=8, le=64, description="Shortest password, in code points.")
    breached_passwords_file: Path | None = Field(
        default=None,
        description="Passwords known from breaches, which nobody may choose: the one sorted file that the downloader of Pwned "
        "Passwords writes (`SHA1:COUNT` lines). It is searched, not loaded.",
    )
    hash_threads: int = Field(
        default=min(_MAX_HASH_THREADS, usable_cores()),
        ge=1,
        le=_MAX_HASH_THREADS,
        description="Passwords hashed at once. Default: the cores that the process may use, 64 at most.",
    )
    hash_queue: int = Field(
        default=32, ge=0, le=10_000, description="Passwords that may wait for a thread; beyond that the answer is 503."
    )

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if self.bcrypt_cost < _MIN_PRODUCTION_BCRYPT_COST:
            yield f"APP_AUTH__BCRYPT_COST: must be {_MIN_PRODUCTION_BCRYPT_COST} or more"
        yield from super().unsafe_in_production()


class RateLimitSettings(SettingsGroup):
    """How often something may be tried."""

    enabled: bool = Field(
        default=True, description="Count attempts, and refuse the surplus with 429. Always on in production."
    )

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        if not self.enabled:
            yield "APP_RATE_LIMIT__ENABLED: must stay on"
