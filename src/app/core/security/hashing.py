"""Hashes and verifies passwords in separate threads, so that the event loop stays free."""

import asyncio
import os
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hmac import digest
from typing import override

import bcrypt
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers import HasherProtocol
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.base import ensure_str
from pwdlib.hashers.bcrypt import BcryptHasher

from app.core.config import HashingSettings
from app.core.errors import UnavailableError
from app.core.observability.metrics import Counter, Reading
from app.core.security.breaches import refuse_breached
from app.core.security.passwords import composed

_HASHES = Counter(
    "password_hashes",
    "Passwords hashed or verified, and those that a full queue refused.",
    outcome=("begun", "refused"),
)
_NICENESS = 10
_ROUNDS = re.compile(r"\$(?:2[abxy]\$|bcrypt-sha256\$v=2,t=2b,r=)([0-9]{1,2})\$")
_BCRYPT_SHA256 = re.compile(r"\$bcrypt-sha256\$v=2,t=2b,r=(\d{1,2})\$([A-Za-z0-9./]{22})\$([A-Za-z0-9./]{31})")


class HashingBusyError(UnavailableError):
    """The queue of passwords to hash is full."""

    code = "hashing_busy"
    detail = "Too many logins at once. Try again in a moment."


class BcryptSha256Hasher(HasherProtocol):
    """bcrypt of the HMAC-SHA-256 of the password, so that every byte counts: bcrypt alone reads only 72 bytes.

    Format and construction are those of passlib's `bcrypt_sha256` version 2. The key of the HMAC is bcrypt's salt. So a table of
    plain SHA-256 digests does not help an attacker.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    @override
    @classmethod
    def identify(cls, hash: str | bytes) -> bool:
        return _BCRYPT_SHA256.fullmatch(ensure_str(hash)) is not None

    @override
    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        salt = salt or bcrypt.gensalt(self._rounds)
        hashed = bcrypt.hashpw(_prehash(password, salt[7:29]), salt).decode()
        return f"$bcrypt-sha256$v=2,t=2b,r={self._rounds}${hashed[7:29]}${hashed[29:]}"

    @override
    def verify(self, password: str | bytes, hash: str | bytes) -> bool:
        match = _BCRYPT_SHA256.fullmatch(ensure_str(hash))
        if match is None:
            return False
        rounds, salt, checksum = match.groups()
        hashed = f"$2b${int(rounds):02}${salt}{checksum}".encode()
        return bcrypt.checkpw(_prehash(password, salt.encode()), hashed)

    @override
    def check_needs_rehash(self, hash: str | bytes) -> bool:
        match = _BCRYPT_SHA256.fullmatch(ensure_str(hash))
        return match is None or int(match[1]) != self._rounds


class _TruncatingBcryptHasher(BcryptHasher):
    """Verifies plain `$2b$` hashes from other systems. Those truncated passwords to 72 bytes; bcrypt 5 rejects longer ones."""

    @override
    def verify(self, password: str | bytes, hash: str | bytes) -> bool:
        return super().verify(ensure_str(password).encode()[:72], hash)


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of a check. `new_hash` replaces a stored hash of an older scheme or another cost, if the password is valid."""

    is_valid: bool
    new_hash: str | None = None


class PasswordHasher:
    """Hashes and verifies passwords in a few threads with a lower priority than requests.

    At most `hash_threads` passwords are hashed at once, and `hash_queue` wait. Further calls raise `HashingBusyError`.
    """

    def __init__(self, settings: HashingSettings) -> None:
        is_argon2 = settings.password_hash == "argon2id"
        argon2, bcrypt_sha256 = Argon2Hasher(), BcryptSha256Hasher(settings.bcrypt_cost)
        # The first scheme hashes new passwords.
        schemes = (argon2, bcrypt_sha256) if is_argon2 else (bcrypt_sha256, argon2)
        self._hashes = PasswordHash((*schemes, _TruncatingBcryptHasher()))
        # The bcrypt cost up to which `_equalize_time` adds work. An argon2id decoy has no bcrypt cost, so it adds none.
        self._decoy_rounds = 0 if is_argon2 else settings.bcrypt_cost
        self._breached_file = settings.breached_passwords_file
        self._thread_count = settings.hash_threads
        self._capacity = settings.hash_threads + settings.hash_queue
        self._admitted = 0
        self._threads = ThreadPoolExecutor(settings.hash_threads, "password-hash", initializer=_lower_priority)
        # The hash that is verified for an unknown account. It costs the same work as a real one, and no password matches it.
        self._decoy = self._hashes.hash(os.urandom(32).hex()) if is_argon2 else _bcrypt_decoy(settings.bcrypt_cost)

    def close(self) -> None:
        """Stop the threads when their current hash is done, and cancel waiting work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def readings(self) -> Iterator[Reading]:
        """Yield the number of passwords that are being hashed, and the number that wait."""
        active = min(self._admitted, self._thread_count)
        yield Reading("password_hash_active", "Passwords that are being hashed.", active)
        yield Reading("password_hash_waiting", "Passwords that wait for a thread.", self._admitted - active)

    async def hash(self, password: str, *, pointer: str = "#/password") -> str:
        """Hash a new password by the configured scheme. Raises `InvalidInputError` for a password from a known data breach."""
        return await self._run(lambda: self._hash(composed(password), pointer))

    async def verify(self, password: str, stored: str | None) -> Verification:
        """Check a password. Without a stored hash, do the same work and return an invalid result."""
        return await self._run(lambda: self._verify(composed(password), stored))

    def _hash(self, password: str, pointer: str) -> str:
        if self._breached_file:
            refuse_breached(password, self._breached_file, pointer=pointer)
        return self._hashes.hash(password)

    def _verify(self, password: str, stored: str | None) -> Verification:
        compared = stored or self._decoy
        try:
            is_valid, new_hash = self._hashes.verify_and_update(password, compared)
        except UnknownHashError:
            compared = self._decoy
            is_valid, new_hash = self._hashes.verify_and_update(password, compared)
        if is_valid and stored:
            return Verification(is_valid, new_hash)
        self._equalize_time(compared)
        return Verification(is_valid=False)

    def _equalize_time(self, compared: str) -> None:
        """Do the work that a bcrypt hash of a lower cost n has saved: 2ⁿ + 2ⁿ + 2ⁿ⁺¹ + … = 2ᵐ, the work of the decoy.

        Otherwise a fast refusal would reveal an account whose owner has not logged in since the cost was raised. A hash of another
        scheme or of a higher cost gets no additional work.
        """
        match = _ROUNDS.match(compared)
        for rounds in range(int(match[1]) if match else self._decoy_rounds, self._decoy_rounds):
            bcrypt.hashpw(b"", bcrypt.gensalt(rounds))

    async def _run[T](self, work: Callable[[], T]) -> T:
        if self._admitted >= self._capacity:
            _HASHES.count("refused")
            raise HashingBusyError
        _HASHES.count("begun")
        self._admitted += 1
        future = self._threads.submit(work)
        # Count down when the work is done, not when the caller is cancelled: until then, the hash occupies its thread.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: self._release(loop))
        return await asyncio.wrap_future(future)

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        # The event loop may already be closed when the process stops. The count does not matter then.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._count_down)

    def _count_down(self) -> None:
        self._admitted -= 1


def _lower_priority() -> None:
    # On Linux, each thread has its own niceness. It is raised relative to that of the process, which may have been started by `nice`.
    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)


def _bcrypt_decoy(rounds: int) -> str:
    salt = bcrypt.gensalt(rounds).decode()[7:29]
    return f"$bcrypt-sha256$v=2,t=2b,r={rounds}${salt}${'.' * 31}"


def _prehash(password: str | bytes, salt: bytes) -> bytes:
    return b64encode(digest(salt, ensure_str(password).encode(), "sha256"))
