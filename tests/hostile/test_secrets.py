"""Sends secrets through every operation of a server, and looks for them in logs, metrics, responses and the database."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import asyncpg
from httpx2 import AsyncClient, Response
from sqlalchemy import make_url, select

from app.auth.settings import AuthSettings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import load_key_ring
from app.users import links
from app.users.models import AccountLink
from tests.conftest import KEY_SET, make_settings
from tests.factories import make_user
from tests.servers import Server, real_server
from tests.volume import plain

OTHER_UUID = "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"
PASSWORD = "canary-password of a person"
NEW_PASSWORD = "canary-new password of one"
COOKIE = "canary-cookie"
JUNK_TOKEN = "canary-token.canary-token.canary-token"
NAME = "Canary Lovelace"
SMTP_PASSWORD = "canary-smtp"
DATABASE_PASSWORD = "canary-database"
FORM = "application/x-www-form-urlencoded"
# These values must not appear anywhere. Names and addresses are stored, but must not appear in logs and errors.
SECRETS = {PASSWORD, NEW_PASSWORD, COOKIE, JUNK_TOKEN, SMTP_PASSWORD, DATABASE_PASSWORD}


@dataclass
class Watched:
    """A server, the secrets that were sent to it, and its responses."""

    server: Server
    client: AsyncClient
    url: str
    secrets: set[str] = field(default_factory=lambda: set(SECRETS))
    refusals: list[Response] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)

    async def send(self, operation: str, method: str, address: str, **options: Any) -> Response:
        response = await self.client.request(method, address, **options)
        if response.status_code >= 400:
            self.refusals.append(response)
        else:
            self.accepted.add(operation)
            if response.content and response.headers.get("content-type") == "application/json":
                self.secrets |= set(tokens_in(response.json()))
        return response


def tokens_in(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        yield from (document[name] for name in ("access_token", "refresh_token") if name in document)


def private_keys() -> Iterator[str]:
    """Return the private parts of the keys of the server."""
    for key in json.loads(KEY_SET)["keys"]:
        yield from (key[name] for name in ("d", "k") if name in key)


def value_of(name: str, schema: Mapping[str, Any], number: int) -> Any:
    """Return a valid value for a member, with a canary if it can contain one."""
    kinds = [schema, *schema.get("anyOf", ())]
    schema = next(kind for kind in kinds if kind.get("type") or "const" in kind or "$ref" in kind)
    secrets = {"password": PASSWORD, "current_password": PASSWORD, "new_password": NEW_PASSWORD, "client_secret": ""}
    if name in secrets:
        return secrets[name]
    if schema.get("format") == "email" or name == "username":
        return f"canary{number}@example.com"
    if schema.get("type") == "boolean":
        return True
    texts = {"token": JUNK_TOKEN, "refresh_token": JUNK_TOKEN, "role": "user", "scope": ""}
    return schema.get("const") or texts.get(name, NAME)


def bodies(
    operation: Mapping[str, Any], schemas: Mapping[str, Any], number: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return a valid body for each media type of an operation."""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        for choice in content["schema"].get("oneOf", [content["schema"]]):
            schema = schemas[choice["$ref"].rpartition("/")[2]]
            yield media_type, {name: value_of(name, member, number) for name, member in schema["properties"].items()}


async def send_secrets(watched: Watched, database: Database, hasher: PasswordHasher) -> None:
    """Send secrets through every operation, in valid and in invalid requests."""
    document = (await watched.client.get("/openapi.json")).json()
    hashed = await hasher.hash(PASSWORD)
    operations = [(path, *one) for path, item in document["paths"].items() for one in item.items()]
    for number, (path, method, operation) in enumerate(operations):
        async with database.begin() as session:
            user = await make_user(session, email=f"canary{number}@example.com", role="admin", hashed_password=hashed)
            victim = await make_user(session, email=f"victim{number}@example.com")
        login = {"grant_type": "password", "username": user.email, "password": PASSWORD}
        pair = (await watched.send("log in", "POST", "/api/v1/auth/token", data=login)).json()
        address = path.replace("{user_id}", str(victim.id)).replace("{session_id}", OTHER_UUID)
        bearer = {"Authorization": f"Bearer {pair['access_token']}"} if "security" in operation else {}
        await _misuse(watched, method, address, bearer)
        given = list(bodies(operation, document["components"]["schemas"], number)) or [("", {})]
        for media_type, body in given:
            kind = "data" if media_type == FORM else "json"
            options: dict[str, Any] = {kind: body} if media_type else {}
            wrong = {name: [value, value] for name, value in body.items()} | {"canary-member": PASSWORD}
            if media_type:
                await watched.send(path, method.upper(), address, headers=bearer, **{kind: wrong})
            await watched.send(f"{method} {path}", method.upper(), address, headers=bearer, **options)


async def _misuse(watched: Watched, method: str, address: str, bearer: dict[str, str]) -> None:
    for headers in (
        {"Authorization": f"Bearer {JUNK_TOKEN}"},
        {"Authorization": f"Basic {JUNK_TOKEN}"},
        bearer | {"Content-Type": "application/json"},
    ):
        content = f'{{"password": "{PASSWORD}", "token": "{JUNK_TOKEN}"'.encode()
        await watched.send("misuse", method.upper(), address, headers=headers, content=content)
    for name in ("token", "password", "other"):
        await watched.send("misuse", method.upper(), f"{address}?{name}={quote(PASSWORD)}", headers=bearer)


async def rows(url: str) -> dict[str, str]:
    """Return the rows of each table as text."""
    connection = await asyncpg.connect(plain(url))
    try:
        names = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {
            name: "\n".join(row["each"] for row in await connection.fetch(f'SELECT t::text AS each FROM "{name}" AS t'))  # noqa: S608  # Names of tables.
            for (name,) in names
        }
    finally:
        await connection.close()


async def test_no_secret_appears_in_logs_metrics_responses_or_the_database(
    clone_url: str, hasher: PasswordHasher
) -> None:
    url = make_url(clone_url)
    # A server without password authentication accepts any password.
    url = url if url.password else url.set(password=DATABASE_PASSWORD)
    database = Database(make_settings(clone_url).database)
    environment = {
        "APP_RATE_LIMIT__ENABLED": "false",
        "APP_LOG__LEVEL": "debug",
        "APP_JOBS__IN_PROCESS": "true",
        # No server listens there, so every mail fails and is logged.
        "APP_MAIL__URL": f"smtp://canary:{SMTP_PASSWORD}@127.0.0.1:1",
    }
    async with (
        real_server(url.render_as_string(hide_password=False), **environment) as server,
        AsyncClient(base_url=server.base_url, cookies={"session": COOKIE}) as client,
    ):
        watched = Watched(server, client, clone_url)
        await send_secrets(watched, database, hasher)
        await server.wait_for_line("job failed and will be retried", within=30)
        metrics = (await client.get("/metrics")).text
        logged = "\n".join(server.lines())
    keys = load_key_ring(make_settings(clone_url).of(AuthSettings))
    async with database.read_sessions() as session:
        mailed = {links.secret(keys, link) for link in await session.scalars(select(AccountLink))}
    await database.dispose()

    secrets = watched.secrets | mailed | set(private_keys())
    assert len(watched.accepted) > 15, watched.accepted
    assert len(watched.refusals) > 150
    assert mailed
    responses = "\n".join(f"{response.headers} {response.text}" for response in watched.refusals)
    stored = await rows(clone_url)
    for place, text in {"log": logged, "metrics": metrics, "refusals": responses, **stored}.items():
        found = {secret for secret in secrets if secret in text}
        assert not found, (place, found)
    # Personal data is stored in the database, and must not appear anywhere else.
    for personal in (NAME, "@example.com"):
        assert personal not in logged + metrics + responses
    assert NAME in stored["users"] + stored["procrastinate_jobs"]
