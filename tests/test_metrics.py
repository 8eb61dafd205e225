"""The metrics of the application, read over HTTP like a scraper."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from app.core.config import TelemetrySettings
from app.core.db.database import Database
from app.core.observability import exposition as exposition_module
from app.core.observability import requests
from app.core.observability.exposition import exposition
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.conftest import ROOT, cloned, make_settings, running
from tests.core.scrape import Scrape, scrape
from tests.factories import PASSWORD, make_user

TOKEN = "/api/v1/auth/token"
ME = "/api/v1/users/me"


@dataclass(frozen=True)
class Site:
    """An application on its own database, and the port of its metrics."""

    client: AsyncClient
    port: int
    database: Database

    async def scrape(self) -> Scrape:
        return await scrape(self.port)

    async def until(self, condition: Callable[[Scrape], bool]) -> Scrape:
        """Scrape until the condition is true."""
        async with asyncio.timeout(20):
            while not condition(shown := await self.scrape()):  # noqa: ASYNC110  # Metrics must be polled.
                await asyncio.sleep(0.05)
        return shown

    async def log_in(self, email: str, password: str = PASSWORD) -> dict[str, Any]:
        form = {"grant_type": "password", "username": email, "password": password}
        body: dict[str, Any] = (await self.client.post(TOKEN, data=form)).json()
        return body

    async def refresh(self, token: str) -> dict[str, Any]:
        form = {"grant_type": "refresh_token", "refresh_token": token}
        body: dict[str, Any] = (await self.client.post(TOKEN, data=form)).json()
        return body


@pytest.fixture(scope="module", autouse=True)
def _without_requests_of_other_tests() -> None:
    """All tests of a process use one registry. Its thousands of series would slow down each scrape."""
    for histogram in (requests._DURATION, requests._STATEMENTS, requests._DATABASE):
        histogram._series.clear()


@asynccontextmanager
async def site_on(url: str, **groups: Any) -> AsyncIterator[Site]:
    settings = make_settings(url, auth={"access_check": "memory", **groups.pop("auth", {})}, **groups)
    database = Database(settings.database)
    with exposition(TelemetrySettings(metrics_port=0)) as exposed:
        assert exposed
        async with running(create_app(settings, database, exposition=lambda: nullcontext(exposed))) as client:
            yield Site(client, exposed.port, database)
    await database.dispose()


@pytest.fixture(scope="module")
async def site(template_url: str, hasher: PasswordHasher) -> AsyncIterator[Site]:
    """One application for all tests, with the account ada@example.com. The tests compare the values before and after."""
    async with cloned(template_url) as url, site_on(url, auth={"refresh_reuse_grace": 0}) as site:
        async with site.database.begin() as session:
            await make_user(session, hasher, email="ada@example.com")
        yield site


async def test_requests_are_counted_by_route_method_and_status_class(site: Site) -> None:
    before = await site.scrape()

    await site.client.get("/problems/not-found")
    await site.client.get("/problems/no-such-problem")
    await site.client.get("/no/such/route/7")
    await site.client.request("BREW", "/no/such/route/8")
    after = await site.scrape()

    def more(**labels: str) -> float:
        name = "http_request_duration_seconds_count"
        return after.value(name, **labels) - before.value(name, **labels)

    assert more(method="GET", route="/problems/{name}", status="2xx") == 1
    assert more(method="GET", route="/problems/{name}", status="4xx") == 1
    assert more(method="GET", route="(none)", status="4xx") == 1
    assert more(method="(other)", route="(none)", status="4xx") == 1
    assert "such/route" not in after.text
    assert "BREW" not in after.text


async def test_the_duration_of_a_request_is_in_its_bucket(site: Site) -> None:
    before = await site.scrape()

    await site.client.get("/livez")
    after = await site.scrape()

    def more(name: str, **labels: str) -> float:
        return after.value(name, route="/livez", **labels) - before.value(name, route="/livez", **labels)

    assert more("http_request_duration_seconds_bucket", le="+Inf") == 1
    assert 0 < more("http_request_duration_seconds_sum") < 10


async def test_the_statements_of_a_request_are_counted_and_timed(site: Site) -> None:
    pair = await site.log_in("ada@example.com")
    await site.until(lambda shown: shown.value("revocation_mode", mode="listening") == 1)
    before = await site.scrape()

    for _ in range(2):
        await site.client.get(ME, headers={"Authorization": f"Bearer {pair['access_token']}"})
    await site.client.get("/livez")
    after = await site.scrape()

    def more(name: str, route: str) -> float:
        return after.value(name, route=route) - before.value(name, route=route)

    assert more("http_request_statements_sum", ME) == 2
    assert more("http_request_statements_count", ME) == 2
    assert more("http_request_statements_sum", "/livez") == 0
    assert 0 < more("http_request_database_seconds_sum", ME) < more("http_request_duration_seconds_sum", ME)


async def test_a_running_request_counts_as_in_flight(site: Site) -> None:
    async with site.database.begin() as holder:
        await holder.execute(text("LOCK TABLE rate_limits IN ACCESS EXCLUSIVE MODE"))
        waiting = asyncio.create_task(forgot(site, "x@example.com"))
        during = await site.until(lambda shown: shown.value("http_requests_in_flight") == 1)
    await waiting
    after = await site.scrape()

    assert during.value("database_pool_in_use", pool="write") == 2
    assert after.value("http_requests_in_flight") == 0
    assert after.value("database_pool_in_use", pool="write") == 0


async def test_tasks_that_wait_for_a_connection_are_counted(clone_url: str) -> None:
    async with (
        site_on(clone_url, database={"pool_size": 1, "pool_wait": "60s"}) as site,
        site.database.sessions() as holder,
    ):
        await holder.execute(text("SELECT 1"))
        waiting = asyncio.create_task(forgot(site, "x@example.com"))
        during = await site.until(lambda shown: shown.value("database_pool_waiting", pool="write") == 1)
        await holder.close()
        response = await waiting

    assert response.status_code == 202
    assert during.value("database_pool_size", pool="write") == during.value("database_pool_size", pool="read") == 1
    assert during.value("database_pool_waiting", pool="read") == 0


async def test_logins_are_counted_by_outcome(site: Site) -> None:
    before = await site.scrape()

    await site.log_in("ada@example.com")
    await site.log_in("ada@example.com", "not the password at all")
    await site.log_in("nobody@example.com")
    after = await site.scrape()

    def more(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert more("logins_total", outcome="succeeded") == 1
    assert more("logins_total", outcome="invalid_grant") == 2
    assert more("login_failures_total", reason="wrong_password") == 1
    assert more("login_failures_total", reason="unknown_account") == 1
    assert more("password_hashes_total", outcome="begun") == 3


async def test_refreshes_and_reused_tokens_are_counted(site: Site) -> None:
    before = await site.scrape()

    first = await site.log_in("ada@example.com")
    await site.refresh(first["refresh_token"])
    await site.refresh(first["refresh_token"])
    after = await site.scrape()

    def more(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert more("token_refreshes_total", outcome="succeeded") == 1
    assert more("token_refreshes_total", outcome="invalid_grant") == 1
    assert more("refresh_token_alarms_total", event="auth.refresh_reuse_detected") == 1


async def test_attempts_are_counted_by_rate_limit(site: Site) -> None:
    before = await site.scrape()

    for _ in range(12):
        await site.log_in("guesser@example.com")
    after = await site.scrape()

    def more(limit: str, outcome: str) -> float:
        labels = {"limit": limit, "outcome": outcome}
        return after.value("rate_limit_attempts_total", **labels) - before.value("rate_limit_attempts_total", **labels)

    assert more("login-account-address", "counted") == 10
    assert more("login-account-address", "refused") == 2
    assert more("login-account", "counted") == 10
    assert more("login-account", "refused") == 0
    assert (
        after.value("logins_total", outcome="rate_limited") - before.value("logins_total", outcome="rate_limited") == 2
    )


async def test_the_state_of_the_revocation_listener_is_exposed(site: Site) -> None:
    shown = await site.until(lambda shown: shown.value("revocation_mode", mode="listening") == 1)

    assert shown.value("revocation_mode") == 1
    assert 0 <= shown.value("revocation_age_seconds") < 10


async def test_a_full_hash_queue_is_exposed(clone_url: str) -> None:
    auth = {"hash_threads": 1, "hash_queue": 1, "bcrypt_cost": 12}
    async with site_on(clone_url, auth=auth) as site:
        before = await site.scrape()
        # One password is hashed and one waits. On a busy machine a few more may be hashed, but not all.
        logins = [asyncio.create_task(site.log_in(f"{name}@example.com")) for name in "abcdefgh"]
        during = await site.until(lambda shown: shown.value("password_hash_waiting") == 1)
        await asyncio.gather(*logins)
        after = await site.scrape()

    assert during.value("password_hash_active") == 1
    assert after.value("password_hash_active") == after.value("password_hash_waiting") == 0
    refused = after.value("logins_total", outcome="hashing_busy") - before.value("logins_total", outcome="hashing_busy")
    assert refused >= 1
    hashes = {"outcome": "refused"}
    assert after.value("password_hashes_total", **hashes) - before.value("password_hashes_total", **hashes) == refused


# Jobs and mail


async def test_jobs_and_mails_are_counted_by_outcome(clone_url: str, tmp_path: Path) -> None:
    groups = {"jobs": {"in_process": True}, "mail": {"url": tmp_path.as_uri()}}
    async with site_on(clone_url, **groups) as site:
        before = await site.scrape()
        async with site.database.begin() as session:
            await make_user(session, email="x@example.com")
        await forgot(site, "x@example.com")
        mails = {"template": "reset_password", "outcome": "delivered"}
        so_far = before.value("mails_total", **mails)
        after = await site.until(lambda shown: shown.value("mails_total", **mails) > so_far)
        job = {"task": "users.jobs:mail_link", "outcome": "done"}
        done = await site.until(
            lambda shown: shown.value("job_runs_total", **job) > before.value("job_runs_total", **job)
        )

    assert after.value("mails_total", **mails) == so_far + 1
    assert done.value("job_duration_seconds_count", task="users.jobs:mail_link") >= 1


async def test_the_queue_metrics_are_read_from_the_database(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site.database.begin() as session:
        await session.execute(text("TRUNCATE procrastinate_jobs RESTART IDENTITY CASCADE"))
    for number in range(3):
        await forgot(site, f"x{number}@example.com")
    async with site.database.begin() as session:
        for change in (
            "SET scheduled_at = now() + interval '1 hour' WHERE id = 1",
            "SET status = 'failed' WHERE id = 2",
            "SET scheduled_at = now() - interval '90 seconds' WHERE id = 3",
        ):
            await session.execute(text(f"UPDATE procrastinate_jobs {change}"))  # Of this test.
    monkeypatch.setattr(exposition_module, "_LOOKUP_TTL", 0.0)
    started = time.monotonic()
    shown = await site.scrape()

    lengths = {name: shown.values(f"jobs_{name}") for name in ("waiting", "scheduled", "running", "failed")}
    assert lengths == {"waiting": {"": 1}, "scheduled": {"": 1}, "running": {"": 0}, "failed": {"": 1}}
    assert 90 <= shown.value("jobs_lateness_seconds") < 95 + time.monotonic() - started


async def forgot(site: Site, email: str) -> Response:
    """Enqueue a job for this address."""
    return await site.client.post("/api/v1/auth/password/forgot", json={"email": email})


# Documentation


DOCUMENT = ROOT / "docs" / "operations" / "metrics.md"


async def test_each_metric_is_described_in_a_sentence(site: Site) -> None:
    shown = await site.until(lambda shown: "revocation_age_seconds" in shown.types)

    for family in text_string_to_metric_families(shown.text):
        assert re.match(r"[A-Z0-9].*[a-z].*\.$", family.documentation), f"{family.name}: {family.documentation}"


async def test_the_document_lists_each_metric_with_its_type_and_labels(site: Site) -> None:
    await site.log_in("ada@example.com")
    shown = await site.until(lambda shown: "revocation_age_seconds" in shown.types)

    # Other tables of the page have other words in the second column.
    listed: dict[str, tuple[str, set[str]]] = {}
    for names, kind, labels in re.findall(
        r"^\| (`[^|]*) \| (counter|gauge|histogram) \|([^|]*)\|", DOCUMENT.read_text(), flags=re.MULTILINE
    ):
        for name in re.findall(r"`(\w+)`", names):
            listed[name.removesuffix("_total")] = (kind, set(re.findall(r"`(\w+)`", labels)))

    ours = {name: kind for name, kind in shown.types.items() if not name.startswith(("process_", "test_"))}
    assert {name: kind for name, (kind, _) in listed.items()} == ours
    for name, (kind, labels) in listed.items():
        samples = {"counter": f"{name}_total", "histogram": f"{name}_count"}.get(kind, name)
        assert shown.labels[samples] - {"worker"} == labels, name
