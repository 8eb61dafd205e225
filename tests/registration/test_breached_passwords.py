"""A password from a known breach is refused at a registration."""

from pathlib import Path

import pytest

from app.core.db.database import Database, WriteSession
from app.main import create_app
from tests.account.test_breached_passwords import BREACHED, assert_refused
from tests.aftermath import jobs
from tests.auth.post import AUTH
from tests.conftest import make_settings, running
from tests.core.security.test_breaches import write


@pytest.mark.parametrize("spelled", [BREACHED, "cre\u0300me bru\u0302le\u0301e for breakfast"])
async def test_a_breached_password_is_refused_at_registration(
    database_url: str, database: Database, session: WriteSession, tmp_path: Path, spelled: str
) -> None:
    file = write(tmp_path / "breached.txt", [BREACHED, *map(str, range(50))])
    settings = make_settings(database_url, auth={"breached_passwords_file": file})
    body = {"email": "new@example.com", "password": spelled}
    async with running(create_app(settings, database)) as client:
        assert_refused(await client.post(f"{AUTH}/register", json=body), "#/password")
        assert await jobs(session) == []

        accepted = await client.post(f"{AUTH}/register", json=body | {"password": "x" + spelled})

    assert accepted.status_code == 202
