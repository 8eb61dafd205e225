from httpx2 import AsyncClient

from app.account.seed import ACCOUNTS, PASSWORD, seed
from app.core.config import Settings
from app.core.db.database import WriteSession
from app.core.security.hashing import PasswordHasher
from app.core.seeding import Seeding
from tests.conftest import log_in

EMAILS = [email for email, *_ in ACCOUNTS]


async def test_the_example_accounts_can_log_in(
    client: AsyncClient, session: WriteSession, settings: Settings, hasher: PasswordHasher
) -> None:
    added = await seed(session, Seeding(settings, hasher))
    await session.commit()

    headers = [await log_in(client, email, PASSWORD) for email in EMAILS]
    accounts = [(await client.get("/api/v1/users/me", headers=each)).json() for each in headers]
    assert added == EMAILS
    assert [(one["email"], one["full_name"], one["role"]) for one in accounts] == list(ACCOUNTS)


async def test_a_second_run_finds_the_same_accounts(
    session: WriteSession, settings: Settings, hasher: PasswordHasher
) -> None:
    first, second = Seeding(settings, hasher), Seeding(settings, hasher)
    await seed(session, first)

    assert await seed(session, second) == []
    assert len(second.account_ids) == len(ACCOUNTS)
    assert second.account_ids == first.account_ids
