"""`make seed`, on a database of the tests."""

import re
import shutil
import subprocess
import sys

import asyncpg
import pytest
from sqlalchemy import text

from app.account.seed import ACCOUNTS, PASSWORD
from app.core.db.database import Database
from app.dev.data.seeds import SeedError, seed
from tests.conftest import KEY_SET, make_settings, outside
from tests.dev.data.test_tools import dev
from tests.servers import paste, real_server

NOWHERE = "postgresql://somebody:hunter2hunter2@db.internal/app"


@pytest.fixture
async def empty_url(clone_url: str) -> str:
    """A database without a schema."""
    connection = await asyncpg.connect(clone_url.replace("+asyncpg", ""))
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
    return clone_url


async def count_accounts(url: str) -> int:
    database = Database(make_settings(url).database)
    async with database.sessions() as session:
        found = await session.scalar(text("SELECT count(*) FROM users"))
    await database.dispose()
    return int(found or 0)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_a_second_run_adds_nothing_and_the_printed_line_logs_in(empty_url: str) -> None:
    first, second = (dev("seed", url=empty_url, APP_ENVIRONMENT="local") for _ in range(2))
    async with real_server(empty_url) as server:
        (line,) = re.findall(r"curl .*", second.stdout)
        output = await paste(re.sub(r"http://127.0.0.1:\d+", server.base_url, line))

    assert first.stdout.startswith(f"account: added {', '.join(email for email, *_ in ACCOUNTS)}\n"), first.stderr
    assert second.stdout.startswith("account: the example data exists already\n"), second.stderr
    assert await count_accounts(empty_url) == len(ACCOUNTS)
    assert PASSWORD in second.stdout
    assert '"access_token"' in output


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"APP_ENVIRONMENT": "production"}, "runs only with APP_ENVIRONMENT=local, not production"),
        ({}, "DATABASE_URL names another database"),
    ],
)
def test_other_environments_and_databases_are_refused(
    environment: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APP_ENVIRONMENT", raising=False)
    for name, value in {"DATABASE_URL": NOWHERE, **environment}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SeedError, match=sentence) as refused:
        list(seed())

    assert "hunter2" not in str(refused.value)


def test_production_loads_no_example_data() -> None:
    program = (
        "import sys, app.cli, app.asgi, app.worker\n"
        "app.asgi.app\n"
        "print([name for name in sys.modules if name.startswith('app.') and 'seed' in name])"
    )
    environment = {"APP_ENVIRONMENT": "test", "APP_AUTH__SIGNING_KEYS": KEY_SET, "DATABASE_URL": NOWHERE}

    loaded = subprocess.run(
        [sys.executable, "-c", program], env=outside() | environment, capture_output=True, text=True, check=True
    )

    assert loaded.stdout == "[]\n"
