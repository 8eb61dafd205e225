"""Neither contents nor times of responses reveal an account. `measure_enumeration` measures larger samples."""

from collections.abc import AsyncIterator

import pytest
from httpx2 import AsyncClient

from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.account.measure_enumeration import (
    KINDS,
    NOBODY,
    OPERATIONS,
    TRUSTED_PROXIES,
    add_accounts,
    ask,
    email_of,
    judge,
    sample,
)
from tests.auth.statements import statements
from tests.conftest import make_settings, running

SAMPLES = 20
# Chance alone exceeds this once in some ten thousand runs; a hash or a statement left out gives nearly 1.
BOUND = 0.9


@pytest.fixture
async def asked(
    database_url: str, database: Database, session: WriteSession, hasher: PasswordHasher
) -> AsyncIterator[AsyncClient]:
    """A client of an application with accounts of every kind, behind a proxy that names other clients each time."""
    await add_accounts(session, hasher, of_each=2)
    await session.commit()
    # The stored hashes are of a lower cost, as after an upgrade; this one is high enough to be seen when it is left out.
    settings = make_settings(database_url, auth={"bcrypt_cost": 7}, server={"trusted_proxies": TRUSTED_PROXIES})
    async with running(create_app(settings, database)) as client:
        yield client


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_address_costs_the_same_statements(
    asked: AsyncClient, worker_database: Database, operation: str
) -> None:
    costs = {}
    for kind in (*KINDS, NOBODY):
        with statements(worker_database) as seen:
            await ask(asked, operation, email_of(kind, 0))
        costs[kind] = seen

    assert len(costs[NOBODY]) > 1
    assert all(costs[kind] == costs[NOBODY] for kind in KINDS)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_no_address_takes_a_different_time(asked: AsyncClient, operation: str) -> None:
    findings = judge(operation, await sample(asked, operation, SAMPLES, of_each=2, warm_up=3))

    assert max(finding.area for finding in findings) < BOUND, "\n".join(map(str, findings))
