"""Both legs of a login through a generated client."""

from pathlib import Path

import pytest

from app.core.config import Settings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.conftest import ROOT, make_settings
from tests.factories import PASSWORD, make_user
from tests.factors.phone import live_sessions
from tests.servers import real_server
from tests.test_generated_client import check_types, generate, run

SCENARIO = ROOT / "tests" / "factors" / "client_scenario.py"


@pytest.mark.slow
async def test_a_generated_client_logs_in_in_two_requests(
    settings: Settings, hasher: PasswordHasher, clone_url: str, tmp_path: Path
) -> None:
    await generate(tmp_path, create_app(settings).openapi())
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        user = await make_user(session, hasher, email="ada@example.com")

    async with real_server(clone_url) as server:
        await check_types(tmp_path, SCENARIO)
        await run(tmp_path, SCENARIO, server.base_url, "ada@example.com", PASSWORD)

    async with database.begin() as session:
        live = await live_sessions(session, str(user.id))
    await database.dispose()
    assert [(one.acr, one.amr) for one in live] == [
        ("aal2", ["pwd", "otp", "mfa"]),
        ("aal2", ["pwd", "rc", "mfa"]),
    ]
