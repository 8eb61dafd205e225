import hmac
from base64 import urlsafe_b64decode
from datetime import timedelta
from uuid import UUID

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text, update

from app.core import product
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.security.keys import KeyRing, generate_key_set, parse_key_ring
from app.jobs.queue import Work
from app.mail.mailer import Mailer
from app.mail.message import Message
from app.users import jobs, links
from app.users.models import AccountLink, Purpose, User
from tests.aftermath import events, snapshot
from tests.conftest import KEY_SET, LoggedIn
from tests.factories import make_user


@pytest.fixture
def keys() -> KeyRing:
    """The keys of the test run."""
    return parse_key_ring(KEY_SET, source="the run")


@pytest.fixture
async def owner(session: WriteSession) -> User:
    """An account without a password."""
    user = await make_user(session, full_name="Ada Lovelace", hashed_password=None)
    await session.commit()
    return user


class MemoryTransport:
    """Collects messages instead of sending them."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    async def deliver(self, message: Message) -> None:
        self.sent.append(message)


@pytest.fixture
def outbox() -> MemoryTransport:
    """The sent messages."""
    return MemoryTransport()


@pytest.fixture
def work(database: Database, outbox: MemoryTransport, keys: KeyRing, settings: Settings) -> Work:
    """The context of a running job."""
    return Work(database, Mailer(outbox, from_address="no-reply@example.com", from_name=product.NAME), keys, settings)


async def make_link(session: WriteSession, keys: KeyRing, user: User) -> AccountLink:
    link_id = await links.create(session, keys, user.id, "set_password")
    await session.commit()
    link = await links.find_live(session, link_id)
    assert link is not None
    return link


async def test_a_link_expires_after_three_days_by_the_clock_of_the_database(
    session: WriteSession, keys: KeyRing, owner: User
) -> None:
    link = await make_link(session, keys, owner)

    (row,) = (await snapshot(session))["account_links"]
    assert row.expires_at - row.created_at == timedelta(days=3)
    assert (row.user_id, row.purpose, row.used_at) == (owner.id, "set_password", None)
    assert row.pepper_id == keys.active_pepper
    assert link.id == row.id


async def test_a_new_link_deletes_older_links_of_the_account(session: WriteSession, keys: KeyRing, owner: User) -> None:
    other = await make_user(session)
    old = await make_link(session, keys, owner)
    others = await make_link(session, keys, other)

    new = await make_link(session, keys, owner)

    assert await links.find_live(session, old.id) is None
    assert {row.id for row in (await snapshot(session))["account_links"]} == {new.id, others.id}


@pytest.mark.parametrize(
    ("change", "lives"),
    [("used_at = now()", False), ("expires_at = now()", False), ("expires_at = now() + interval '1 ms'", True)],
)
async def test_a_used_or_expired_link_is_not_found(
    session: WriteSession, keys: KeyRing, owner: User, change: str, lives: bool
) -> None:
    link = await make_link(session, keys, owner)
    await session.execute(text(f"UPDATE account_links SET {change}"))  # noqa: S608  # The table above.
    await session.commit()

    found = await links.find_live(session, link.id)

    assert (found is not None) is lives


async def test_a_link_can_be_used_once(session: WriteSession, keys: KeyRing, owner: User) -> None:
    link = await make_link(session, keys, owner)

    assert [await links.use(session, link) for _ in range(2)] == [True, False]


async def test_the_secret_is_derived_from_pepper_purpose_id_and_nonce(
    session: WriteSession, keys: KeyRing, owner: User
) -> None:
    link = await make_link(session, keys, owner)

    secret = links.secret(keys, link)

    prefix, _, body = secret.partition(".")
    raw = urlsafe_b64decode(body + "=" * (-len(body) % 4))
    assert prefix == "lt1"
    assert UUID(bytes=raw[:16]) == link.id
    assert raw[16] == link.pepper_id
    message = b"lt1\0set_password\0" + link.id.bytes + b"\0" + link.nonce
    assert raw[17:] == hmac.digest(keys.peppers[link.pepper_id], message, "sha256")
    assert links.secret(keys, link) == secret


async def test_each_link_and_each_pepper_gives_a_different_secret(
    session: WriteSession, keys: KeyRing, owner: User
) -> None:
    first = links.secret(keys, await make_link(session, keys, owner))
    link = await make_link(session, keys, owner)

    second, foreign = (
        links.secret(ring, link) for ring in (keys, parse_key_ring(generate_key_set(), source="another"))
    )

    assert len({first, second, foreign}) == 3


async def test_the_secret_cannot_be_derived_from_the_database_alone(
    session: WriteSession, keys: KeyRing, owner: User
) -> None:
    link = await make_link(session, keys, owner)

    (row,) = (await snapshot(session))["account_links"]

    raw = urlsafe_b64decode(links.secret(keys, link).removeprefix("lt1.") + "==")
    assert raw[17:] not in {value for value in row if isinstance(value, bytes)}
    assert len(row.nonce) == 32


async def test_deleting_an_account_deletes_its_links(session: WriteSession, keys: KeyRing, owner: User) -> None:
    await make_link(session, keys, owner)

    await session.execute(text("DELETE FROM users WHERE id = :id"), {"id": owner.id})
    await session.commit()

    assert (await snapshot(session))["account_links"] == []


async def test_the_mail_contains_the_secret_in_the_fragment_of_the_configured_url(
    session: WriteSession, keys: KeyRing, owner: User, work: Work, outbox: MemoryTransport, settings: Settings
) -> None:
    link = await make_link(session, keys, owner)

    await jobs.mail_link(work, link.id)

    (mail,) = outbox.sent
    address = f"{settings.public_url}/account/set-password#token={links.secret(keys, link)}"
    assert mail.to == owner.email
    assert address in mail.text
    assert mail.html is not None
    assert address in mail.html
    assert "Ada Lovelace" in mail.text
    assert "3 days" in mail.text
    assert str(link.id) in mail.message_id


async def test_a_mail_that_is_sent_twice_has_the_same_content_and_id(
    session: WriteSession, keys: KeyRing, owner: User, work: Work, outbox: MemoryTransport
) -> None:
    link = await make_link(session, keys, owner)

    await jobs.mail_link(work, link.id)
    await jobs.mail_link(work, link.id)

    first, second = outbox.sent
    assert first == second


async def test_an_unusable_link_is_not_mailed(
    session: WriteSession, keys: KeyRing, owner: User, work: Work, outbox: MemoryTransport
) -> None:
    link = await make_link(session, keys, owner)
    await session.execute(update(AccountLink).values(used_at=AccountLink.created_at))
    await session.commit()

    await jobs.mail_link(work, link.id)

    assert outbox.sent == []


async def test_no_mail_is_sent_about_a_deleted_account(
    client: AsyncClient,
    session: WriteSession,
    admin: LoggedIn,
    keys: KeyRing,
    owner: User,
    work: Work,
    outbox: MemoryTransport,
) -> None:
    link = await make_link(session, keys, owner)
    await client.delete(f"/api/v1/users/{owner.id}", headers=admin.headers)

    await jobs.mail_link(work, link.id)

    assert outbox.sent == []


async def test_markup_in_a_name_is_escaped_in_the_mail(
    session: WriteSession, keys: KeyRing, work: Work, outbox: MemoryTransport
) -> None:
    user = await make_user(session, full_name='<script>alert("{{7*7}}")</script>')
    link = await make_link(session, keys, user)

    await jobs.mail_link(work, link.id)

    (mail,) = outbox.sent
    assert mail.html is not None
    assert "<script>" not in mail.html
    assert 'Hello <script>alert("{{7*7}}")</script>' in mail.text


async def test_a_link_with_an_unknown_pepper_is_retried_later(session: WriteSession, keys: KeyRing) -> None:
    link = await make_link(session, keys, await make_user(session))
    keys.peppers.clear()

    with pytest.raises(links.UnknownPepperError):
        links.secret(keys, link)


async def test_no_job_log_line_or_row_contains_the_secret(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, keys: KeyRing
) -> None:
    created = await client.post("/api/v1/users", json={"email": "ada@example.com"}, headers=admin.headers)
    (row,) = (await snapshot(session))["account_links"]
    link = await links.find_live(session, row.id)
    assert link is not None

    secret = links.secret(keys, link).removeprefix("lt1.")

    everything = repr(await snapshot(session)) + created.text + repr(await events(session, "%"))
    assert secret not in everything
    # The part after the id must not appear anywhere. The id is not secret.
    assert secret[-40:] not in everything


async def test_another_encoding_of_a_secret_is_rejected(session: WriteSession, keys: KeyRing, owner: User) -> None:
    link = await make_link(session, keys, owner)
    secret = links.secret(keys, link)
    purposes: frozenset[Purpose] = frozenset({"set_password"})
    # The last character contains two bits of the last byte, and four unused bits.
    spellings = [secret[:-1] + last for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"]

    found = [text for text in spellings if await links.find_by_secret(session, keys, text, purposes)]

    assert found == [secret]
