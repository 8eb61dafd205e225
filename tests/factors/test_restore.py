"""Second factors after a restore from a backup, as docs/operations/backups.md describes it."""

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from httpx2 import AsyncClient

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import generate_key_set
from app.main import create_app
from tests.conftest import KEY_SET, LoggedIn, log_in, make_settings, running
from tests.factories import make_user
from tests.factors.phone import Enrolled, enrol, first_leg, log_in_with_code, second_leg
from tests.restoring import Restore, documented, restoring


@asynccontextmanager
async def served(url: str, keys: str = KEY_SET) -> AsyncIterator[tuple[AsyncClient, Database]]:
    settings = make_settings(url, auth={"signing_keys": keys})
    database = Database(settings.database)
    async with running(create_app(settings, database)) as client:
        yield client, database
    await database.dispose()


@pytest.fixture
async def restore(template_url: str, clone_url: str, tmp_path: Path) -> AsyncIterator[Restore]:
    async with restoring(template_url, clone_url, tmp_path) as restore:
        yield restore


async def enrolled(url: str, hasher: PasswordHasher) -> Enrolled:
    async with served(url) as (client, database):
        async with database.begin() as session:
            user = await make_user(session, hasher)
        return await enrol(client, LoggedIn(str(user.id), user.email, await log_in(client, user.email)))


async def test_a_restored_second_factor_takes_the_next_code_and_no_used_one(
    restore: Restore, hasher: PasswordHasher
) -> None:
    owner = await enrolled(restore.source, hasher)
    used = owner.phone.code()
    restore.dump()
    restore.restore()

    printed = restore.prepare()

    assert "totp_secrets.sealed: 1 opened by seal-1\n" in printed
    async with served(restore.target) as (client, _):
        again = await second_leg(client, await first_leg(client, owner.email), code=used)
        assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
        assert (await log_in_with_code(client, owner)).claims["acr"] == "aal2"


async def test_a_seal_key_that_was_removed_since_is_added_to_the_present_key_set(
    restore: Restore, hasher: PasswordHasher
) -> None:
    if not shutil.which("jq"):
        pytest.skip("jq is missing")
    owner = await enrolled(restore.source, hasher)
    restore.dump()
    restore.restore()
    present = json.loads(generate_key_set())
    (key,) = present["seal_keys"]
    restore.keys = json.dumps({**present, "seal_keys": [{**key, "kid": "seal-2"}]})

    refused = restore.run(documented("app"))

    assert refused.returncode == 1
    assert refused.stderr.count("app: ") == 1
    assert "sealed with seal-1, which the key set lacks, and 0 more in totp_secrets.sealed" in refused.stderr
    # The sessions are not ended: the commands stop at the first failure.
    assert "Ended" not in refused.stdout
    (restore.directory / "keys.json").write_text(restore.keys)
    (restore.directory / "keys-of-then.json").write_text(KEY_SET)
    restore.succeed(documented("jq"))
    restore.keys = (restore.directory / "merged.json").read_text()
    assert "totp_secrets.sealed: 1 opened by seal-1\n" in restore.prepare()
    async with served(restore.target, restore.keys) as (client, _):
        assert (await log_in_with_code(client, owner)).claims["acr"] == "aal2"
