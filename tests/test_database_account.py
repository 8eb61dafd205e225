"""The database role that docs/security.md defines for the running service has all rights that it needs, and no others."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import make_url

from app.audit import jobs as audit_jobs
from app.auth import jobs as auth_jobs
from app.auth.settings import AuthSettings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import load_key_ring
from app.jobs.queue import Work
from app.mail.mailer import make_mailer
from app.mail.settings import MailSettings
from app.main import create_app
from tests.conftest import ROOT, log_in, make_settings, running
from tests.factories import make_user
from tests.jobs.conftest import QUICK, eventually, statuses
from tests.listings import listings

(GRANTS,) = [listing.text for listing in listings(ROOT / "docs" / "security.md") if listing.language == "sql"]
EMAIL = "ada@example.com"


@pytest.fixture
async def service_url(clone_url: str) -> AsyncIterator[str]:
    """The URL of a new database for the role of the service."""
    role = f"service_{uuid4().hex[:12]}"
    owner = await asyncpg.connect(clone_url.replace("+asyncpg", ""))
    try:
        await owner.execute(GRANTS.replace("app_service", role))
        yield (
            make_url(clone_url)
            .set(username=role, password="from the secret store")
            .render_as_string(hide_password=False)
        )
    finally:
        await owner.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')
        await owner.close()


async def test_the_documented_rights_are_enough_for_the_service(
    service_url: str, hasher: PasswordHasher, tmp_path: Path
) -> None:
    settings = make_settings(
        service_url,
        auth={"access_check": "memory"},
        jobs={**QUICK, "in_process": True},
        mail={"url": tmp_path.as_uri()},
    )
    database = Database(settings.database)
    async with database.begin() as session:
        await make_user(session, hasher, email=EMAIL, role="admin")

    async with running(create_app(settings)) as client:
        headers = await log_in(client, EMAIL)
        responses = [
            await client.get("/readyz"),
            await client.post("/api/v1/auth/password/forgot", json={"email": EMAIL}),
            await client.post("/api/v1/users", json={"email": "made@example.com"}, headers=headers),
            await client.patch("/api/v1/users/me", json={"full_name": "Ada"}, headers=headers),
            await client.get("/api/v1/users/me/export", headers=headers),
            await client.delete("/api/v1/users/me/sessions", headers=headers),
        ]
        await eventually(partial(all_are_done, database, tmp_path))
    purging = Work(database, make_mailer(settings.of(MailSettings)), load_key_ring(settings.of(AuthSettings)), settings)
    await audit_jobs.purge(purging)
    await auth_jobs.purge(purging)

    assert [response.status_code for response in responses] == [200, 202, 201, 200, 200, 204]
    await database.dispose()


async def all_are_done(database: Database, folder: Path) -> bool:
    """Return whether all jobs have succeeded and the two mails were sent."""
    return set(await statuses(database)) == {"succeeded"} and mails_in(folder) == 2


def mails_in(folder: Path) -> int:
    return len(list(folder.glob("*.eml")))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id int)",
        "ALTER TABLE users ADD COLUMN back_door text",
        "DROP TABLE audit_events",
        "TRUNCATE audit_events",
        "UPDATE audit_events SET event = 'nothing'",
        "DELETE FROM audit_events",
        "ALTER TABLE audit_events DISABLE TRIGGER ALL",
        "DROP TRIGGER sessions_end_is_published ON sessions",
        "UPDATE alembic_version SET version_num = 'none'",
        "CREATE ROLE another",
        "COPY users TO PROGRAM 'cat'",
    ],
)
async def test_the_role_of_the_service_cannot_change_the_schema_or_the_audit_log(
    service_url: str, statement: str
) -> None:
    connection = await asyncpg.connect(service_url.replace("+asyncpg", ""))
    try:
        await connection.execute("INSERT INTO audit_events (id, event, detail) VALUES (gen_random_uuid(), 'x', '{}')")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()
