"""Primitives: passwords, hashed and verified off the event loop."""

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
from pwdlib.hashers.bcrypt import BcryptHasher

from app.core.config import HashingSettings
from app.core.errors import UnavailableError
from app.core.observability.metrics import Counter, Reading
from app.core.security.breaches import refuse_breached
from app.core.security.passwords import composed

_HASHES = Counter(
    "password_hashes", "Passwords hashed or verified, and those refused by a full queue.", outcome=("begun", "refused")
)
_NICENESS = 10
_ROUNDS = re.compile(r"\$(?:2[abxy]\$|bcrypt-sha256\$v=2,t=2b,r=)([0-9]{1,2})\$")
_BCRYPT_SHA256 = re.compile(r"\$bcrypt-sha256\$v=2,t=2b,r=(\d{1,2})\$([A-Za-z0-9./]{22})\$([A-Za-z0-9./]{31})")


class HashingBusyError(UnavailableError):
    """More passwords wait to be hashed than the queue admits."""

    code = "hashing_busy"
    detail = "Too many logins at once; try again in a moment."


class BcryptSha256Hasher(HasherProtocol):
    """bcrypt over HMAC-SHA-256 of the password, so that all of it counts: bcrypt alone reads 72 bytes.

    The format and the construction are passlib's `bcrypt_sha256` version 2: the HMAC key is bcrypt's salt, which keeps
    the pre-hash from being looked up in a table of plain SHA-256 digests.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    @override
    @classmethod
    def identify(cls, hash: str | bytes) -> bool:
        return _BCRYPT_SHA256.fullmatch(_text(hash)) is not None

    @override
    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        salt = salt or bcrypt.gensalt(self._rounds)
        hashed = bcrypt.hashpw(_prehash(password, salt[7:29]), salt).decode()
        return f"$bcrypt-sha256$v=2,t=2b,r={self._rounds}${hashed[7:29]}${hashed[29:]}"

    @override
    def verify(self, password: str | bytes, hash: str | bytes) -> bool:
        match = _BCRYPT_SHA256.fullmatch(_text(hash))
        if match is None:
            return False
        rounds, salt, checksum = match.groups()
        hashed = f"$2b${int(rounds):02}${salt}{checksum}".encode()
        return bcrypt.checkpw(_prehash(password, salt.encode()), hashed)

    @override
    def check_needs_rehash(self, hash: str | bytes) -> bool:
        match = _BCRYPT_SHA256.fullmatch(_text(hash))
        return match is None or int(match[1]) != self._rounds


class _TruncatingBcryptHasher(BcryptHasher):
    """Plain `$2b$` hashes from other systems, which truncated at 72 bytes; bcrypt 5 refuses longer passwords."""

    @override
    def verify(self, password: str | bytes, hash: str | bytes) -> bool:
        return super().verify(_bytes(password)[:72], hash)


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether the password was right and, if the stored hash is of an older scheme or cost, what to store instead."""

    is_valid: bool
    new_hash: str | None = None


class PasswordHasher:
    """Hashes and verifies passwords in its own few threads, at a lower priority than the requests.

    At most `hash_threads` run at once and `hash_queue` wait; beyond that the caller gets `HashingBusyError`.
    """

    def __init__(self, settings: HashingSettings) -> None:
        preferred = BcryptSha256Hasher(settings.bcrypt_cost)
        argon2 = Argon2Hasher()
        hashers = (argon2, preferred) if settings.password_hash == "argon2id" else (preferred, argon2)
        self._hashes = PasswordHash((*hashers, _TruncatingBcryptHasher()))
        # Nothing to make up for where the decoy is none of bcrypt's.
        self._rounds = 0 if settings.password_hash == "argon2id" else settings.bcrypt_cost
        self._breached = settings.breached_passwords_file
        self._thread_count = settings.hash_threads
        self._capacity = settings.hash_threads + settings.hash_queue
        self._admitted = 0
        self._threads = ThreadPoolExecutor(settings.hash_threads, "password-hash", initializer=_lower_priority)
        # What an unknown account is checked against: the same work, and no password fits.
        self._decoy = (
            self._hashes.hash(os.urandom(32).hex())
            if settings.password_hash == "argon2id"
            else _decoy(settings.bcrypt_cost)
        )

    def close(self) -> None:
        """Give the threads back; what has not begun is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def readings(self) -> Iterator[Reading]:
        """Show how many passwords are being hashed and how many wait."""
        active = min(self._admitted, self._thread_count)
        yield Reading("password_hash_active", "Passwords that are being hashed.", active)
        yield Reading("password_hash_waiting", "Passwords that wait for a thread.", self._admitted - active)

    async def hash(self, password: str, *, pointer: str = "#/password") -> str:
        """Hash a new password by the preferred scheme; raise an `InvalidInputError` for one that is known from a breach."""
        return await self._run(lambda: self._hash(composed(password), pointer))

    async def verify(self, password: str, stored: str | None) -> Verification:
        """Check a password; without a stored hash the same work is done and the answer is no."""
        return await self._run(lambda: self._verify(composed(password), stored))

    def _hash(self, password: str, pointer: str) -> str:
        if self._breached:
            refuse_breached(password, self._breached, pointer=pointer)
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
        self._make_up_for(compared)
        return Verification(is_valid=False)

    def _make_up_for(self, cheaper: str) -> None:
        """Do the work that a bcrypt hash of a lower cost has saved: 2ⁿ + 2ⁿ + 2ⁿ⁺¹ + … is the decoy's 2ᵐ.

        Else a quick refusal would tell an account that has not logged in since the cost was raised. A hash of the other
        scheme, or of a higher cost, cannot be made as cheap as the decoy.
        """
        match = _ROUNDS.match(cheaper)
        for rounds in range(int(match[1]) if match else self._rounds, self._rounds):
            bcrypt.hashpw(b"", bcrypt.gensalt(rounds))

    async def _run[T](self, work: Callable[[], T]) -> T:
        if self._admitted >= self._capacity:
            _HASHES.count("refused")
            raise HashingBusyError
        _HASHES.count("begun")
        self._admitted += 1
        future = self._threads.submit(work)
        # When the work is done, not when the caller stops waiting: an abandoned hash still occupies its thread.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: self._release(loop))
        return await asyncio.wrap_future(future)

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        # The loop may be gone when the process stops; nobody counts any more then.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._count_down)

    def _count_down(self) -> None:
        self._admitted -= 1


def _lower_priority() -> None:
    # On Linux niceness is per thread: hashing yields to whatever answers requests, also in a process that is nice itself.
    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)


def _decoy(rounds: int) -> str:
    salt = bcrypt.gensalt(rounds).decode()[7:29]
    return f"$bcrypt-sha256$v=2,t=2b,r={rounds}${salt}${'.' * 31}"


def _prehash(password: str | bytes, salt: bytes) -> bytes:
    return b64encode(digest(salt, _bytes(password), "sha256"))


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _text(data: str | bytes) -> str:
    return data.decode() if isinstance(data, bytes) else data
