"""The number of SQL statements of each leg of a login with a second factor."""

from uuid import UUID

import pytest
from sqlalchemy import text

from tests.conftest import LoggedIn, log_in
from tests.factors.phone import REAUTHENTICATE, Enrolled, enrol, first_leg, second_leg
from tests.test_statements import Site, site

__all__ = ["site"]


@pytest.fixture
async def owner(site: Site) -> Enrolled:  # The fixture.
    """An account with a second factor."""
    user_id = await site.account()
    async with site.database.begin() as session:
        email = await session.scalar(text("SELECT email FROM users WHERE id = :id"), {"id": UUID(user_id)})
    assert email
    return await enrol(site.client, LoggedIn(user_id, email, await log_in(site.client, email)))


async def test_the_first_leg_executes_three_statements(site: Site, owner: Enrolled) -> None:
    # Count the attempt. Read the account and whether it has a factor. Insert the login that waits, and the event.
    with site.noted() as statements:
        await first_leg(site.client, owner.email)

    assert len(statements) == 3, statements


async def test_the_second_leg_executes_four_statements(site: Site, owner: Enrolled) -> None:
    token = await first_leg(site.client, owner.email)

    # Count the guess for the login, and for account and address. Lock the account, and use up login and factor. Start the session.
    with site.noted() as statements:
        response = await second_leg(site.client, token, code=owner.phone.code(steps=1))

    assert response.status_code == 200
    assert len(statements) == 4, statements


async def test_a_wrong_code_executes_four_statements(site: Site, owner: Enrolled) -> None:
    token = await first_leg(site.client, owner.email)

    with site.noted() as statements:
        response = await second_leg(site.client, token, code=owner.phone.wrong())

    assert response.status_code == 400
    # The third counts the wrong code, the fourth is the event.
    assert len(statements) == 4, statements


async def test_a_renewed_login_executes_eight_statements(site: Site, owner: Enrolled) -> None:
    body = {"code": owner.phone.code(steps=1)}

    with site.noted() as statements:
        response = await site.client.post(REAUTHENTICATE, json=body, headers=owner.pair.headers)

    assert response.status_code == 200
    assert len(statements) == 8, statements
