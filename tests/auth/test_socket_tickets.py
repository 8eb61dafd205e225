"""Tickets for WebSockets: who gets one, and when it is worthless."""

import asyncio
import time
from hashlib import sha256

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text

from app.auth.access import tickets
from app.auth.access.tickets import Bearer
from app.auth.errors import InsufficientScopeError, InvalidTicketError
from app.auth.settings import AuthSettings
from app.core.config import Settings
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.aftermath import assert_problem
from tests.auth.login_sessions import ME, REVOKE, TICKETS, Pair, start, ticket_of
from tests.auth.test_token_status import ENDS, add_account
from tests.conftest import LoggedIn, make_settings, running


async def ask(client: AsyncClient, headers: dict[str, str]) -> Response:
    return await client.post(TICKETS, headers=headers)


@pytest.fixture
async def tokens(client: AsyncClient, user: LoggedIn) -> Pair:
    return await start(client, user.email)


async def test_a_ticket_is_random_and_only_its_digest_is_stored(
    client: AsyncClient, session: WriteSession, settings: Settings, tokens: Pair
) -> None:
    response = await ask(client, tokens.headers)

    ticket = response.json()["ticket"]
    assert tickets.FORM.fullmatch(ticket)
    assert ticket != await ticket_of(client, tokens.headers)
    assert response.headers["cache-control"] == "no-store"
    lifetime = settings.of(AuthSettings).socket_ticket_ttl
    assert response.json()["expires_in"] == lifetime.total_seconds()
    rows = (await session.execute(text("SELECT *, expires_at - now() AS rest FROM socket_tickets"))).all()
    (row,) = [row for row in rows if row.digest == sha256(ticket.encode()).digest()]
    assert (row.session_id, row.scope) == (tokens.session_id, tokens.claims["scope"])
    assert row.token_expires_at.timestamp() == tokens.claims["exp"]
    assert row.rest <= lifetime
    assert ticket not in str(row)


async def test_a_ticket_stands_for_the_access_token_that_asked_for_it(
    client: AsyncClient, database: Database, tokens: Pair
) -> None:
    ticket = await ticket_of(client, tokens.headers)

    bearer = await tickets.redeem(database, ticket, (), AuthSettings())

    claims = tokens.claims
    assert bearer == Bearer(
        user_id=bearer.user_id,
        session_id=tokens.session_id,
        version=claims["ver"],
        scopes=frozenset(claims["scope"].split()),
        auth_time=claims["auth_time"],
        acr="aal1",
        expires_at=claims["exp"],
    )
    assert str(bearer.user_id) == claims["sub"]


async def test_a_ticket_works_once(client: AsyncClient, database: Database, tokens: Pair) -> None:
    ticket = await ticket_of(client, tokens.headers)
    await tickets.redeem(database, ticket, (), AuthSettings())

    with pytest.raises(InvalidTicketError):
        await tickets.redeem(database, ticket, (), AuthSettings())


async def test_an_access_token_that_ends_first_ends_its_ticket(session: WriteSession, tokens: Pair) -> None:
    soon = int(time.time()) + 5

    issued = await tickets.issue(
        session,
        session_id=tokens.session_id,
        version=tokens.claims["ver"],
        scopes=(),
        expires_at=soon,
        lifetime=AuthSettings().socket_ticket_ttl,
    )

    assert issued.expires_in <= 5
    expiry = await session.scalar(text("SELECT expires_at FROM socket_tickets"))
    assert expiry is not None
    assert expiry.timestamp() == soon


async def test_an_expired_ticket_is_refused_and_used_up(
    client: AsyncClient, session: WriteSession, database: Database, tokens: Pair
) -> None:
    ticket = await ticket_of(client, tokens.headers)
    await session.execute(text("UPDATE socket_tickets SET expires_at = now() - interval '1 ms'"))
    await session.commit()

    with pytest.raises(InvalidTicketError):
        await tickets.redeem(database, ticket, (), AuthSettings())

    assert await session.scalar(text("SELECT count(*) FROM socket_tickets")) == 0


@pytest.mark.parametrize("end", ENDS)
async def test_a_ticket_ends_with_its_session_or_account(
    client: AsyncClient, session: WriteSession, database: Database, tokens: Pair, end: str
) -> None:
    ticket = await ticket_of(client, tokens.headers)
    values = {"session_id": tokens.session_id, "user_id": tokens.claims["sub"]}
    await session.execute(text(ENDS[end]), {name: value for name, value in values.items() if f":{name}" in ENDS[end]})
    await session.commit()

    with pytest.raises(InvalidTicketError):
        await tickets.redeem(database, ticket, (), AuthSettings())


async def test_a_ticket_ends_with_a_logout(client: AsyncClient, database: Database, tokens: Pair) -> None:
    ticket = await ticket_of(client, tokens.headers)
    await client.post(REVOKE, data={"token": tokens.refresh})

    with pytest.raises(InvalidTicketError):
        await tickets.redeem(database, ticket, (), AuthSettings())
    assert_problem(await ask(client, tokens.headers), 401, "invalid_token")


async def test_a_session_that_expires_ends_its_tickets(
    client: AsyncClient, session: WriteSession, database: Database, tokens: Pair
) -> None:
    ticket = await ticket_of(client, tokens.headers)
    await session.execute(text("UPDATE sessions SET idle_expires_at = now()"))
    await session.commit()

    with pytest.raises(InvalidTicketError):
        await tickets.redeem(database, ticket, (), AuthSettings())


async def test_a_deleted_account_leaves_no_ticket(client: AsyncClient, session: WriteSession, tokens: Pair) -> None:
    await ticket_of(client, tokens.headers)

    response = await client.delete(ME, headers=tokens.headers)

    assert response.status_code == 204, response.text
    assert await session.scalar(text("SELECT count(*) FROM socket_tickets")) == 0


async def test_a_ticket_has_the_scopes_of_its_token_and_of_the_role(
    client: AsyncClient, session: WriteSession, database: Database, admin: LoggedIn
) -> None:
    broad, narrow = await start(client, admin.email), await start(client, admin.email, scope="users:write")
    first, second, third = [await ticket_of(client, tokens.headers) for tokens in (broad, narrow, broad)]

    assert "users:read" in (await tickets.redeem(database, first, ["users:read"], AuthSettings())).scopes
    with pytest.raises(InsufficientScopeError):
        await tickets.redeem(database, second, ["users:read"], AuthSettings())
    # The trigger would raise the version, and so end the ticket.
    await session.execute(text("ALTER TABLE users DISABLE TRIGGER USER"))
    await session.execute(text("UPDATE users SET role = 'user'"))
    await session.commit()
    with pytest.raises(InsufficientScopeError):
        await tickets.redeem(database, third, ["users:read"], AuthSettings())


@pytest.mark.parametrize(
    "form", ["", "st1.", "st1." + "A" * 42, "st1." + "A" * 42 + "B", "lt1." + "A" * 43, "st1." + "Ä" * 43]
)
async def test_a_text_that_is_no_ticket_never_reaches_the_database(form: str) -> None:
    unreachable = Database(make_settings("postgresql://nobody@127.0.0.1:1/none").database)

    with pytest.raises(InvalidTicketError):
        await tickets.redeem(unreachable, form, (), AuthSettings())


async def test_a_session_has_a_limit_of_unused_tickets(
    client: AsyncClient, session: WriteSession, database: Database, tokens: Pair, user: LoggedIn
) -> None:
    unused = [await ticket_of(client, tokens.headers) for _ in range(20)]

    refused = await ask(client, tokens.headers)

    assert_problem(refused, 429, "too_many_tickets")
    assert await session.scalar(text("SELECT count(*) FROM socket_tickets")) == 20
    # Another session of the account has its own limit, and a ticket that has been used does not count.
    assert (await ask(client, user.headers)).status_code == 201
    await tickets.redeem(database, unused[0], (), AuthSettings())
    assert (await ask(client, tokens.headers)).status_code == 201


async def test_one_of_many_concurrent_uses_gets_the_ticket(clone_url: str, hasher: PasswordHasher) -> None:
    # As in two worker processes: each has its own connections.
    databases = [Database(make_settings(clone_url).database) for _ in range(2)]
    async with running(create_app(make_settings(clone_url), databases[0])) as client:
        tokens = await start(client, await add_account(databases[0], hasher))
        for _ in range(10):
            ticket = await ticket_of(client, tokens.headers)

            uses = (tickets.redeem(databases[number % 2], ticket, (), AuthSettings()) for number in range(10))
            results = await asyncio.gather(*uses, return_exceptions=True)

            assert [type(result) for result in results].count(Bearer) == 1
            assert [type(result) for result in results].count(InvalidTicketError) == 9
    for database in databases:
        await database.dispose()
