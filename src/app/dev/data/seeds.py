"""`make seed`: adds the example data of each feature, through its services."""

import asyncio
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

from app import features
from app.account.seed import ACCOUNTS, PASSWORD
from app.auth.settings import AuthSettings
from app.core.config import Settings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.core.seeding import Seed, Seeding
from app.dev import run
from app.migrations import runner
from app.settings import load_settings


class SeedError(Exception):
    """Example data must not be added to this database. The text says why."""


def seed() -> Iterator[str]:
    """Add what is missing. Yield lines for the developer: what was added, and how to log in."""
    _refuse_other_environments()
    _refuse_unconfirmed_databases()
    with run.variables() as variables:
        os.environ.update(variables)
        settings = load_settings()
        added = asyncio.run(_add(settings))
    yield from _report(added)
    yield from _login(f"http://127.0.0.1:{settings.server.port}")


def _refuse_other_environments() -> None:
    environment = os.environ.get("APP_ENVIRONMENT") or "local"
    if environment != "local":
        message = f"make seed adds accounts with a known password, so it runs only with APP_ENVIRONMENT=local, not {environment}."
        raise SeedError(message)


def _refuse_unconfirmed_databases() -> None:
    # A developer may have the URL of a shared database in the shell, even with an address of this machine, through a tunnel.
    if run.given_database() and "APP_ENVIRONMENT" not in os.environ:
        message = (
            "DATABASE_URL names another database than that of make run, and make seed adds accounts with a known password. "
            "If it is a database for development, set APP_ENVIRONMENT=local."
        )
        raise SeedError(message)


async def _add(settings: Settings) -> Mapping[str, Sequence[str]]:
    """Run the `seed` of each feature in one transaction. Return the names of what each of them has added."""
    await runner.upgrade(settings.database)
    database = Database(settings.database)
    try:
        with closing(PasswordHasher(settings.of(AuthSettings))) as hasher:
            async with database.begin() as session:
                seeding = Seeding(settings, hasher)
                return {feature: await found(session, seeding) for feature, found in _seeds()}
    finally:
        await database.dispose()


def _seeds() -> Iterator[tuple[str, Seed]]:
    return ((feature, module.seed) for feature, module in features.parts("seed"))


def _report(added: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for feature, names in added.items():
        yield f"{feature}: added {', '.join(names)}" if names else f"{feature}: the example data exists already"


def _login(address: str) -> Iterator[str]:
    (admin, *_), (user, *_) = ACCOUNTS[:2]
    yield ""
    yield f"  administrator   {admin}"
    yield f"  user            {user}, and others"
    yield f"  password        {PASSWORD}   (of every account that make seed has added)"
    yield ""
    yield "  To log in while make run runs:"
    yield ""
    yield f"    curl -s {address}/api/v1/auth/token -d grant_type=password -d username={user} -d {shlex.quote(f'password={PASSWORD}')}"
