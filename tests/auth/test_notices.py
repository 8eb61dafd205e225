"""Notices to the owner about logins, and events about them in the audit log."""

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from app.core import product
from app.core.db.database import WriteSession
from app.core.security.hashing import PasswordHasher
from app.users.models import User
from tests.aftermath import assert_problem, events
from tests.auth.post import Post, log_in, pair_of, refresh
from tests.factories import PASSWORD, make_user

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0"
NEWER_FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:143.0.1) Gecko/20100101 Firefox/143.0.1"
SAFARI = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 Version/19.1 Mobile Safari/604.1"


@pytest.fixture
async def ada(session: WriteSession, hasher: PasswordHasher) -> User:
    """An account with a password."""
    account = await make_user(session, hasher, email="ada@example.com", full_name="Ada Lovelace")
    await session.commit()
    return account


@pytest.mark.parametrize(
    ("agents", "notices"),
    [
        pytest.param([FIREFOX], 0, id="the first login"),
        pytest.param([FIREFOX, FIREFOX], 0, id="the same browser"),
        pytest.param([FIREFOX, NEWER_FIREFOX], 0, id="the same browser, updated"),
        pytest.param([FIREFOX, SAFARI], 1, id="another device"),
        pytest.param([FIREFOX, SAFARI, FIREFOX, SAFARI], 1, id="both, again"),
        pytest.param([FIREFOX, ""], 1, id="one that says nothing"),
        pytest.param([FIREFOX, SAFARI, "curl/8.1"], 2, id="three"),
    ],
)
async def test_a_login_from_a_new_kind_of_device_sends_a_notice(
    client: AsyncClient, post: Post, ada: User, agents: list[str], notices: int
) -> None:
    for agent in agents:
        assert (await log_in(client, ada.email, **{"User-Agent": agent})).status_code == 200

    assert await post.subjects() == [("ada@example.com", f"A new login to your account at {product.NAME}")] * notices


async def test_a_failed_login_from_a_new_device_sends_no_notice(client: AsyncClient, post: Post, ada: User) -> None:
    await log_in(client, ada.email, **{"User-Agent": FIREFOX})
    await log_in(client, ada.email, "not the password, surely", **{"User-Agent": SAFARI})

    assert await post.collect() == []


async def test_the_notice_goes_to_the_current_address_of_the_account(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    for agent in (FIREFOX, SAFARI):
        await log_in(client, ada.email, **{"User-Agent": agent})
    await session.execute(text("UPDATE users SET email = 'moved@example.com', email_key = 'moved@example.com'"))
    await session.commit()

    assert [mail.to for mail in await post.collect()] == ["moved@example.com"]


async def test_a_deleted_account_gets_no_notice(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    for agent in (FIREFOX, SAFARI):
        await log_in(client, ada.email, **{"User-Agent": agent})
    await session.execute(text("DELETE FROM users"))
    await session.commit()

    assert await post.collect() == []


async def test_a_stolen_token_sends_one_notice(
    client: AsyncClient, session: WriteSession, post: Post, ada: User
) -> None:
    pair = await pair_of(client, ada.email)
    await refresh(client, pair)
    await session.execute(text("UPDATE sessions SET rotated_at = rotated_at - interval '31 s'"))
    await session.commit()

    for _ in range(3):
        assert_problem(await refresh(client, pair), 400, "invalid_grant")

    assert await post.subjects() == [("ada@example.com", f"A login to your account at {product.NAME} has been ended")]


@pytest.mark.parametrize(
    ("state", "password", "reason"),
    [
        ("id = id", "not the password, surely", "wrong_password"),
        ("is_active = false", PASSWORD, "disabled"),
        ("is_active = false", "not the password, surely", "disabled"),
        ("hashed_password = NULL", PASSWORD, "no_password"),
        ("email_verified_at = NULL", PASSWORD, "email_not_verified"),
        ("email_verified_at = NULL", "not the password, surely", "wrong_password"),
    ],
)
async def test_the_audit_log_has_the_reason_of_a_failed_login(
    client: AsyncClient, session: WriteSession, ada: User, state: str, password: str, reason: str
) -> None:
    await session.execute(text(f"UPDATE users SET {state}"))  # noqa: S608  # The table above.
    await session.commit()

    response = await log_in(client, ada.email, password)

    (event,) = await events(session, "%")
    assert (event.event, event.subject_id, event.actor_id) == ("auth.login_failed", ada.id, None)
    assert event.detail == {"reason": reason}
    assert event.request_id == response.headers["x-request-id"]
    assert str(event.ip_prefix) == "127.0.0.0/24"


async def test_the_audit_log_has_a_login_with_its_request(
    client: AsyncClient, session: WriteSession, ada: User
) -> None:
    response = await log_in(client, ada.email)

    (event,) = await events(session, "auth.login_succeeded")
    assert (event.actor_id, event.subject_id) == (ada.id, ada.id)
    assert event.request_id == response.headers["x-request-id"]
    assert str(event.ip_prefix) == "127.0.0.0/24"


async def test_the_audit_log_has_a_login_to_an_unknown_address_without_the_address(
    client: AsyncClient, session: WriteSession
) -> None:
    await log_in(client, "nobody@example.com")

    (event,) = await events(session, "%")
    assert (event.event, event.subject_id, event.detail) == ("auth.login_failed", None, {"reason": "unknown_account"})
    assert "nobody" not in str(event)
