import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pwdlib.hashers.argon2 import Argon2Hasher

from app.auth.settings import AuthSettings
from app.core.security.hashing import BcryptSha256Hasher, HashingBusyError, PasswordHasher, Verification

# From passlib 1.7.4: bcrypt_sha256.using(rounds=5).hash("pässwörd " * 20).
PASSLIB_PASSWORD = "pässwörd " * 20
PASSLIB_HASH = "$bcrypt-sha256$v=2,t=2b,r=5$EYWlDXSiipAdsdjDwoJ6Me$.Qkm26I/WCofhHR2xc4DKhxoXJR6wq6"

type Work = Callable[[], Any]


@contextmanager
def hashing(**options: Any) -> Iterator[PasswordHasher]:
    hasher = PasswordHasher(AuthSettings.model_validate({"bcrypt_cost": 4, **options}))
    try:
        yield hasher
    finally:
        hasher.close()


@pytest.fixture
def argon2_hasher() -> Iterator[PasswordHasher]:
    with hashing(password_hash="argon2id") as hasher:
        yield hasher


class Gate:
    """Work that blocks its thread until `opened` is set."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(10)


async def settled(hasher: PasswordHasher, admitted: int) -> None:
    """Wait until the hasher counts this many passwords. The event loop lowers the count, not the thread."""
    async with asyncio.timeout(5):
        while hasher._admitted != admitted:  # noqa: ASYNC110  # No event announces a change of the count.
            await asyncio.sleep(0)


async def test_a_password_verifies_against_its_own_hash_and_no_other(hasher: PasswordHasher) -> None:
    stored = await hasher.hash("correct horse battery staple")

    assert await hasher.verify("correct horse battery staple", stored) == Verification(is_valid=True)
    assert await hasher.verify("correct horse battery stapl", stored) == Verification(is_valid=False)
    assert stored.startswith("$bcrypt-sha256$v=2,t=2b,r=4$")


async def test_each_hash_of_the_same_password_is_different(hasher: PasswordHasher) -> None:
    assert await hasher.hash("correct horse battery staple") != await hasher.hash("correct horse battery staple")


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_text_verifies_against_its_hash(password: str) -> None:
    hasher = BcryptSha256Hasher(4)

    stored = hasher.hash(password)

    assert hasher.identify(stored)
    assert hasher.verify(password, stored)
    assert not hasher.verify(password + "x", stored)


def test_hashes_of_passlib_verify() -> None:
    hasher = BcryptSha256Hasher(5)

    assert hasher.verify(PASSLIB_PASSWORD, PASSLIB_HASH)
    assert hasher.verify(PASSLIB_PASSWORD.encode(), PASSLIB_HASH.encode())
    assert not hasher.verify(PASSLIB_PASSWORD[:-1], PASSLIB_HASH)
    assert not hasher.check_needs_rehash(PASSLIB_HASH)


def test_passlib_makes_the_same_hash_from_the_same_salt() -> None:
    assert BcryptSha256Hasher(5).hash(PASSLIB_PASSWORD, salt=b"$2b$05$EYWlDXSiipAdsdjDwoJ6Me") == PASSLIB_HASH


@pytest.mark.parametrize("length", [71, 72, 73, 256])
async def test_every_byte_of_a_long_password_counts(hasher: PasswordHasher, length: int) -> None:
    stored = await hasher.hash("a" * length + "b")

    assert (await hasher.verify("a" * length + "b", stored)).is_valid
    assert not (await hasher.verify("a" * length + "c", stored)).is_valid


@pytest.mark.parametrize("password", ["correct horse", "ü" * 40, "x" * 72, "x" * 200])
async def test_bcrypt_hashes_of_other_systems_verify_and_are_replaced(hasher: PasswordHasher, password: str) -> None:
    imported = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()

    verification = await hasher.verify(password, imported)

    assert verification.is_valid
    assert verification.new_hash is not None
    assert verification.new_hash.startswith("$bcrypt-sha256$")
    assert await hasher.verify(password, verification.new_hash) == Verification(is_valid=True)


async def test_a_wrong_password_does_not_replace_an_imported_hash(hasher: PasswordHasher) -> None:
    imported = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()

    assert await hasher.verify("wrong", imported) == Verification(is_valid=False)


async def test_a_hash_of_another_cost_is_replaced(hasher: PasswordHasher) -> None:
    stored = BcryptSha256Hasher(5).hash("correct horse")

    verification = await hasher.verify("correct horse", stored)

    assert verification.new_hash is not None
    assert verification.new_hash.startswith("$bcrypt-sha256$v=2,t=2b,r=4$")


async def test_changing_the_scheme_to_argon2id_replaces_bcrypt_hashes(
    hasher: PasswordHasher, argon2_hasher: PasswordHasher
) -> None:
    stored = await hasher.hash("correct horse")

    verification = await argon2_hasher.verify("correct horse", stored)

    assert verification.new_hash is not None
    assert verification.new_hash.startswith("$argon2id$")
    assert await argon2_hasher.verify("correct horse", verification.new_hash) == Verification(is_valid=True)


async def test_changing_the_scheme_back_to_bcrypt_replaces_argon2id_hashes(
    hasher: PasswordHasher, argon2_hasher: PasswordHasher
) -> None:
    stored = await argon2_hasher.hash("correct horse")

    verification = await hasher.verify("correct horse", stored)

    assert verification.new_hash is not None
    assert verification.new_hash.startswith("$bcrypt-sha256$")


@pytest.mark.parametrize(
    "stored",
    [
        "!",
        "plain text",
        "$2b$04$short",
        "$bcrypt-sha256$v=1,t=2b,r=4$" + "." * 22 + "$" + "." * 31,
        "$bcrypt-sha256$v=2,t=2b,r=4$" + "." * 22 + "$" + "." * 30,
        "$argon2id$v=19$m=65536,t=3,p=4$broken",
    ],
)
async def test_an_invalid_hash_never_verifies(hasher: PasswordHasher, stored: str) -> None:
    assert await hasher.verify("plain text", stored) == Verification(is_valid=False)
    assert await hasher.verify("", stored) == Verification(is_valid=False)


def test_a_hash_of_another_scheme_is_not_identified_or_verified_and_needs_a_rehash() -> None:
    hasher = BcryptSha256Hasher(4)

    assert not hasher.identify("$2b$04$x")
    assert not hasher.verify("x", "$2b$04$x")
    assert hasher.check_needs_rehash("$2b$04$x")


@pytest.mark.parametrize("stored", [None, "", "!", "$2b$04$short"])
async def test_verifying_without_a_usable_hash_costs_the_same_work(
    monkeypatch: pytest.MonkeyPatch, hasher: PasswordHasher, stored: str | None
) -> None:
    costs: list[bytes] = []
    hashpw = bcrypt.checkpw

    def counted(password: bytes, hashed_password: bytes) -> bool:
        costs.append(hashed_password[:7])
        return hashpw(password, hashed_password)

    real = await hasher.hash("correct horse")
    monkeypatch.setattr("app.core.security.hashing.bcrypt.checkpw", counted)

    await hasher.verify("correct horse", real)
    verification = await hasher.verify("correct horse", stored)

    assert not verification.is_valid
    assert costs == [b"$2b$04$", b"$2b$04$"]


def bcrypt_hash(kind: str, rounds: int) -> str:
    if kind == "plain":
        return bcrypt.hashpw(b"correct horse", bcrypt.gensalt(rounds)).decode()
    return BcryptSha256Hasher(rounds).hash("correct horse")


@pytest.mark.parametrize("kind", ["plain", "prehashed"])
@pytest.mark.parametrize(("rounds", "additional"), [(4, [4, 5, 6]), (6, [6]), (7, []), (8, [])])
async def test_a_wrong_password_for_a_cheaper_hash_costs_the_same_work_as_the_decoy(
    monkeypatch: pytest.MonkeyPatch, kind: str, rounds: int, additional: list[int]
) -> None:
    costs: list[int] = []
    hashpw = bcrypt.hashpw
    stored = bcrypt_hash(kind, rounds)

    def counted(password: bytes, salt: bytes) -> bytes:
        costs.append(int(salt[4:6]))
        return hashpw(password, salt)

    monkeypatch.setattr("app.core.security.hashing.bcrypt.hashpw", counted)
    with hashing(bcrypt_cost=7) as hasher:
        verification = await hasher.verify("wrong horse", stored)

    assert not verification.is_valid
    assert costs == additional
    if rounds <= 7:
        assert 2**rounds + sum(2**cost for cost in costs) == 2**7


async def test_a_bcrypt_hash_costs_no_additional_work_if_the_scheme_is_argon2id(
    monkeypatch: pytest.MonkeyPatch, argon2_hasher: PasswordHasher
) -> None:
    stored = bcrypt_hash("plain", 4)

    def never(*_arguments: object) -> bytes:
        raise AssertionError

    monkeypatch.setattr("app.core.security.hashing.bcrypt.hashpw", never)

    assert not (await argon2_hasher.verify("wrong horse", stored)).is_valid


async def test_an_unknown_account_costs_one_argon2id_hash_if_that_is_the_scheme(
    monkeypatch: pytest.MonkeyPatch, argon2_hasher: PasswordHasher
) -> None:
    verified: list[str | bytes] = []
    verify = Argon2Hasher.verify

    def counted(hasher: Argon2Hasher, password: str | bytes, hash: str | bytes) -> bool:
        verified.append(hash)
        return verify(hasher, password, hash)

    monkeypatch.setattr(Argon2Hasher, "verify", counted)

    assert not (await argon2_hasher.verify("correct horse", None)).is_valid
    assert [str(stored)[:31] for stored in verified] == ["$argon2id$v=19$m=65536,t=3,p=4$"]


async def test_a_full_queue_refuses_further_passwords_at_once() -> None:
    gate = Gate()
    with hashing(hash_threads=1, hash_queue=1) as hasher:
        running = asyncio.create_task(hasher._run(gate))
        await asyncio.to_thread(gate.entered.wait, 5)
        queued = asyncio.create_task(hasher._run(lambda: "queued"))
        await settled(hasher, 2)

        with pytest.raises(HashingBusyError) as refused:
            await hasher.verify("x", None)

        gate.opened.set()
        await running
        assert await queued == "queued"
    assert refused.value.headers == {"Retry-After": "1"}


async def test_finished_work_frees_its_place_in_the_queue() -> None:
    with hashing(hash_threads=1, hash_queue=0) as hasher:
        for _ in range(3):
            assert not (await hasher.verify("x", None)).is_valid
            await settled(hasher, 0)


async def test_failed_work_frees_its_place_in_the_queue() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with hashing(hash_threads=1, hash_queue=0) as hasher:
        with pytest.raises(ZeroDivisionError):
            await hasher._run(fail)

        await settled(hasher, 0)


async def test_a_cancelled_hash_keeps_its_place_until_its_thread_is_free() -> None:
    gate = Gate()
    with hashing(hash_threads=1, hash_queue=0) as hasher:
        abandoned = asyncio.create_task(hasher._run(gate))
        await asyncio.to_thread(gate.entered.wait, 5)
        abandoned.cancel()
        with pytest.raises(asyncio.CancelledError):
            await abandoned

        with pytest.raises(HashingBusyError):
            await hasher.hash("x")
        gate.opened.set()
        await settled(hasher, 0)

        assert await hasher.hash("x")


async def test_a_cancelled_hash_in_the_queue_frees_its_place_without_running() -> None:
    gate, ran = Gate(), threading.Event()
    with hashing(hash_threads=1, hash_queue=1) as hasher:
        running = asyncio.create_task(hasher._run(gate))
        await asyncio.to_thread(gate.entered.wait, 5)
        queued = asyncio.create_task(hasher._run(ran.set))
        await settled(hasher, 2)
        queued.cancel()

        await settled(hasher, 1)

        gate.opened.set()
        await running
        await settled(hasher, 0)
    assert not ran.is_set()


async def test_the_event_loop_runs_while_a_password_is_hashed() -> None:
    gate = Gate()
    with hashing(hash_threads=1) as hasher:
        working = asyncio.create_task(hasher._run(gate))

        # Only a running event loop gets to these lines while the thread is blocked.
        await asyncio.to_thread(gate.entered.wait, 5)
        assert not working.done()
        gate.opened.set()

        await working


async def test_the_public_methods_hash_in_the_threads_of_the_hasher(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    hashpw, checkpw = bcrypt.hashpw, bcrypt.checkpw

    def hash_noted(password: bytes, salt: bytes) -> bytes:
        threads.append(threading.current_thread().name)
        return hashpw(password, salt)

    def check_noted(password: bytes, hashed_password: bytes) -> bool:
        threads.append(threading.current_thread().name)
        return checkpw(password, hashed_password)

    monkeypatch.setattr("app.core.security.hashing.bcrypt.hashpw", hash_noted)
    monkeypatch.setattr("app.core.security.hashing.bcrypt.checkpw", check_noted)
    with hashing(hash_threads=1) as hasher:
        await hasher.verify("x", await hasher.hash("x"))

    assert threads == ["password-hash_0", "password-hash_0"]


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is per thread only on Linux")
async def test_hashing_runs_at_a_lower_priority() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with hashing(hash_threads=1) as hasher:
        assert await hasher._run(niceness) > niceness()


async def test_hashing_works_if_the_system_denies_a_lower_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_arguments: int) -> None:
        raise PermissionError

    monkeypatch.setattr("app.core.security.hashing.os.setpriority", deny)
    with hashing() as hasher:
        assert (await hasher.verify("x", await hasher.hash("x"))).is_valid


def test_a_hash_that_outlives_the_event_loop_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    with hashing(hash_threads=1) as hasher:

        async def abandon() -> None:
            task = asyncio.create_task(hasher._run(gate))
            await asyncio.to_thread(gate.entered.wait, 5)
            task.cancel()

        asyncio.run(abandon())
        gate.opened.set()
        hasher._threads.shutdown(wait=True)

    assert caplog.records == []
