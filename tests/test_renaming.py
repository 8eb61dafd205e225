"""The listings of `docs/deployment/renaming-a-column.md`: each release in a copy of the repository, two of them at once under load."""

import asyncio
import os
import random
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.conftest import ROOT, empty, make_settings
from tests.drill.fleet import TOKEN, Fleet, bearer, form
from tests.factories import make_user
from tests.listings import Listing, apply, copy_repository, listings, run
from tests.test_guide import GUIDE, LISTINGS, MIGRATION

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        (ROOT / "src" / "app" / "notes").exists(), reason="this repository has the feature of the guide"
    ),
]

PAGE = ROOT / "docs" / "deployment" / "renaming-a-column.md"
RELEASES = ("1", "2", "3")
NOTES = "/api/v1/notes"
CLIENTS = 4
OLD_NOTES = 2000
# Seconds in which both releases of a step answer requests.
OVERLAP = 1.5
FOLDERS = ("src/app/notes", "src/app/migrations/versions", "tests/notes")
PYTEST = (sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider")
ADD_NOTES = text("""
    INSERT INTO notes (id, owner_id, text) SELECT gen_random_uuid(), id, 'old ' || number
    FROM users, generate_series(1, :number) AS number
""")
STATE = text("""
    SELECT (SELECT string_agg(column_name || ' ' || is_nullable, ', ' ORDER BY column_name) FROM information_schema.columns
            WHERE table_name = 'notes' AND column_name IN ('text', 'body')),
           (SELECT count(*) FROM pg_trigger WHERE tgrelid = 'notes'::regclass AND NOT tgisinternal),
           (SELECT count(*) FROM pg_proc WHERE proname = 'copy_note_text')
""")


def sections(directory: Path) -> dict[str, list[Listing]]:
    """Return the listings of each release."""
    found = {}
    for section in re.split(r"^(?=## )", PAGE.read_text(), flags=re.MULTILINE):
        if match := re.match(r"## Release (\d)", section):
            page = directory / f"{match[1]}.md"
            page.write_text(section)
            found[match[1]] = [listing for listing in listings(page) if listing.path]
    return found


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A copy of the repository for each release. Release 0 has the feature of the guide."""
    directory = tmp_path_factory.mktemp("renaming")
    copies = {"0": directory / "release-0"}
    copy_repository(ROOT, copies["0"])
    with suppress(FileNotFoundError, shutil.Error):
        shutil.copytree(
            ROOT / ".mypy_cache", copies["0"] / ".mypy_cache", ignore=shutil.ignore_patterns("generated_client")
        )
    for listing in LISTINGS:
        apply(listing, copies["0"])
    former = Path(str(MIGRATION.path)).stem
    found = sections(directory)
    assert tuple(found) == RELEASES
    for release, changed in found.items():
        copies[release] = directory / f"release-{release}"
        shutil.copytree(copies[str(int(release) - 1)], copies[release])
        for listing in changed:
            if listing.language == "python":
                (copies[release] / str(listing.path)).unlink(missing_ok=True)
            apply(listing, copies[release])
            if "/versions/" in str(listing.path):
                path = copies[release] / str(listing.path)
                # The date of the guide's migration is that of the newest one of the repository.
                path.write_text(re.sub(r'(?<=down_revision = ")\d{8}_notes(?=")', former, listing.text))
    return copies


async def act(fleet: Fleet, email: str, stopping: asyncio.Event) -> None:
    """Write new notes, change old ones, and read them back. Every request may reach another release."""
    async with AsyncClient(timeout=30) as client:
        client.headers.update(bearer(await fleet.send(client, "login", "POST", TOKEN, data=form(email))))
        old = await fleet.send(client, "list", "GET", f"{NOTES}?limit=100")
        texts = {note["id"]: note["text"] for note in old["items"]}
        number = 0
        while not stopping.is_set():
            number += 1
            written = f"new {number}"
            note = await fleet.send(client, "create", "POST", NOTES, json={"text": written}, expected=201)
            await read(fleet, client, note["id"], written)
            await change(fleet, client, note["id"], f"{written} changed")
            some = random.choice(list(texts))  # noqa: S311  # No secret.
            await read(fleet, client, some, texts[some])
            texts[some] = f"old, changed {number} times"
            await change(fleet, client, some, texts[some])
            page = await fleet.send(client, "list", "GET", f"{NOTES}?limit=100")
            fleet.failures.extend(f"list: {note}" for note in page["items"] if not note["text"])


async def change(fleet: Fleet, client: AsyncClient, note_id: str, written: str) -> None:
    await fleet.send(client, "change", "PATCH", f"{NOTES}/{note_id}", json={"text": written})
    await read(fleet, client, note_id, written)


async def read(fleet: Fleet, client: AsyncClient, note_id: str, expected: str) -> None:
    found = await fleet.send(client, "read", "GET", f"{NOTES}/{note_id}")
    if found.get("text") != expected:
        fleet.failures.append(f"read: {found} instead of {expected}")


@asynccontextmanager
async def load(fleet: Fleet, emails: list[str]) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for email in emails:
            group.create_task(act(fleet, email, stopping))
        try:
            yield
        finally:
            stopping.set()


async def deploy(fleet: Fleet, release: str) -> None:
    """Start the process of a release, let both run, and stop the former one."""
    await fleet.add(release)
    await asyncio.sleep(OVERLAP)
    await fleet.remove_oldest()


async def test_two_releases_at_once_lose_no_request_at_any_step(
    copies: dict[str, Path], template_url: str, hasher: PasswordHasher
) -> None:
    sources = {release: copy / "src" for release, copy in copies.items()}
    async with empty(template_url) as url:
        fleet = Fleet(url, sources)
        await fleet.migrate("0")
        database = Database(make_settings(url).database)
        async with database.begin() as session:
            emails = [(await make_user(session, hasher)).email for _ in range(CLIENTS)]
            await session.execute(ADD_NOTES, {"number": OLD_NOTES})
        await fleet.add("0")

        async with load(fleet, emails):
            await fleet.migrate("1")
            await deploy(fleet, "1")
            too_early = await fleet.run("2", "migrate")
            filled = await fleet.run("1", "notes", "fill-bodies")
            async with database.begin() as session:
                differing = await session.scalar(text("SELECT count(*) FROM notes WHERE body IS DISTINCT FROM text"))
            await fleet.migrate("2")
            for release in ("2", "1", "2"):
                await deploy(fleet, release)
            async with database.begin() as session:
                differing += await session.scalar(text("SELECT count(*) FROM notes WHERE body IS DISTINCT FROM text"))
            await fleet.migrate("3")
            for release in ("3", "2", "3"):
                await deploy(fleet, release)

        await fleet.remove_oldest()
        async with database.begin() as session:
            state = tuple((await session.execute(STATE)).one())
            kept = await session.scalar(text("SELECT count(*) FROM notes WHERE body LIKE 'old%'"))
        await database.dispose()

    assert fleet.failures == []
    assert min(fleet.results[kind] for kind in ("create", "read", "change", "list")) > 20
    assert (too_early, filled, differing) == (1, 0, 0)
    assert state == ("body NO", 0, 0)
    assert kept == CLIENTS * OLD_NOTES


@pytest.mark.parametrize("release", RELEASES)
async def test_the_models_and_the_schema_of_each_release_agree(
    copies: dict[str, Path], template_url: str, release: str
) -> None:
    async with empty(template_url) as url:
        environment = {"DATABASE_URL": url, "APP_ENVIRONMENT": "local"}
        await run(copies[release], "python", "-m", "app", "migrate", **environment)
        output = await run(copies[release], "python", "-m", "alembic", "check", **environment)
        await run(copies[release], "python", "-m", "app", "migrate", "--to", f"-{release}", **environment)

    assert "No new upgrade operations detected" in output


@pytest.mark.parametrize("release", RELEASES)
async def test_the_listings_of_each_release_have_the_style_of_the_repository(
    copies: dict[str, Path], release: str
) -> None:
    await run(copies[release], "ruff", "check", *FOLDERS)
    await run(copies[release], "ruff", "format", "--check", *FOLDERS)


@pytest.mark.skipif("GUIDE" not in os.environ, reason="takes minutes: make guide")
@pytest.mark.parametrize("release", RELEASES)
async def test_the_types_and_tests_of_each_release_pass(
    copies: dict[str, Path], template_url: str, release: str
) -> None:
    coverage = ("--cov=app.notes", "--cov-branch", "--cov-fail-under=100", "--cov-report=term")

    await run(copies[release], "mypy", *FOLDERS)
    output = await run(copies[release], *PYTEST, *coverage, "tests/notes", DATABASE_URL=template_url)

    assert re.search(r"^[1-9][0-9]* passed", output, re.MULTILINE), output


async def test_the_migrations_are_safe_on_tables_in_use(copies: dict[str, Path]) -> None:
    sql = await run(copies["3"], "python", "-m", "app.dev", "migrations")
    written = copies["3"] / "migrations.sql"
    written.write_text(sql)

    assert "DROP COLUMN text" in sql
    await run(copies["3"], "squawk", str(written))


def test_the_page_continues_the_guide() -> None:
    assert f"[the guide](../{GUIDE.name})" in PAGE.read_text()
