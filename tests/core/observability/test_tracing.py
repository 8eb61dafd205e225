"""Traces of requests, their statements and the jobs that they enqueue, as an exporter receives them."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from httpx2 import AsyncClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core import product
from app.core.db.database import Database
from app.core.errors import ConfigurationError
from app.core.observability.span_export import provider_to
from app.core.observability.tracing import Tracing, tracing_from_environment
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.conftest import cloned, log_in, make_settings, running
from tests.core.recording import Recording
from tests.factories import make_user
from tests.jobs.conftest import SCHEDULED
from tests.servers import real_server

ME = "/api/v1/users/me"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Site:
    """The application with tracing, on a separate database."""

    client: AsyncClient
    database: Database
    tracing: Tracing
    exporter: InMemorySpanExporter

    def spans(self) -> list[ReadableSpan]:
        """Return the spans that have ended since the last call, in the order of their ends."""
        spans = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        return spans

    async def until(self, name: str) -> list[ReadableSpan]:
        """Wait for a span with this name, and return all spans until then."""
        async with asyncio.timeout(30):
            while not any(span.name == name for span in self.exporter.get_finished_spans()):  # noqa: ASYNC110  # Spans send no event.
                await asyncio.sleep(0.02)
        return self.spans()


@asynccontextmanager
async def traced(url: str, **groups: Any) -> AsyncIterator[Site]:
    settings = make_settings(url, **groups)
    database = Database(settings.database)
    exporter = InMemorySpanExporter()
    provider = provider_to(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider, provider.shutdown)
    async with running(create_app(settings, database, tracing=tracing)) as client:
        yield Site(client, database, tracing, exporter)
    await database.dispose()


@pytest.fixture(scope="module")
async def shared_site(template_url: str) -> AsyncIterator[Site]:
    """One application with tracing for all tests of this module."""
    async with cloned(template_url) as url, traced(url) as site:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Site:
    """The application, without any span so far."""
    shared_site.exporter.clear()
    return shared_site


@pytest.fixture
async def headers(site: Site, hasher: PasswordHasher) -> dict[str, str]:
    """Headers of a logged-in account."""
    async with site.database.begin() as session:
        email = (await make_user(session, hasher)).email
    headers = await log_in(site.client, email)
    site.exporter.clear()
    return headers


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def trace_of(span: ReadableSpan) -> str:
    assert span.context
    return format(span.context.trace_id, "032x")


async def test_a_request_has_a_span_with_its_statements_as_children(site: Site, headers: dict[str, str]) -> None:
    await site.client.get(ME, headers=headers)

    *statements, request = site.spans()
    assert request.name == f"GET {ME}"
    assert attributes(request)["http.response.status_code"] == 200
    assert [attributes(span)["db.operation.name"] for span in statements] == ["SELECT", "SELECT"]
    assert all("$1" in attributes(span)["db.query.text"] for span in statements)
    assert request.context
    assert {span.parent.span_id for span in statements if span.parent} == {request.context.span_id}
    assert {trace_of(span) for span in statements} == {trace_of(request)}


async def test_a_request_continues_the_trace_of_its_client(site: Site) -> None:
    await site.client.get("/problems/not-found", headers={"traceparent": PARENT})

    (span,) = site.spans()
    assert trace_of(span) == TRACE


async def test_probes_are_not_traced(site: Site) -> None:
    await site.client.get("/livez")
    await site.client.get("/readyz")

    assert site.spans() == []


async def test_probes_below_a_path_of_the_host_are_not_traced(clone_url: str) -> None:
    async with traced(clone_url, server={"public_url": "https://api.example.com/bed"}) as site:
        for path in ("/livez", "/bed/livez", "/bed/readyz", "/bed/problems/not-found"):
            await site.client.get(path)
        names = [span.name for span in site.spans()]

    assert names == ["GET /problems/{name}"]


async def test_no_span_contains_an_address_or_a_value(site: Site, headers: dict[str, str]) -> None:
    await site.client.get("/api/v1/CANARY/x?token=CANARY&q=CANARY")
    await site.client.patch(ME, json={"full_name": "CANARY"}, headers=headers)

    spans = site.spans()
    assert len(spans) > 3
    assert "CANARY" not in "".join(span.to_json() for span in spans)
    assert {attributes(span).get("url.path") for span in spans} <= {None, "[redacted]"}


async def test_the_span_of_a_failed_statement_does_not_contain_the_error_text(site: Site) -> None:
    with site.tracing.tracer.start_as_current_span("of this test"):
        async with site.database.read_sessions() as session:
            with pytest.raises(DBAPIError):
                await session.execute(text("SELECT CAST(:value AS text)::int"), {"value": "CANARY"})

    failed, _ = site.spans()
    assert attributes(failed)["error.type"] == "22P02"
    assert not failed.status.is_ok
    assert "CANARY" not in failed.to_json()


async def test_a_statement_outside_of_requests_and_jobs_is_not_traced(site: Site) -> None:
    async with site.database.read_sessions() as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(DBAPIError):
            await session.execute(text("SELECT 1 / 0"))

    assert site.spans() == []


# Trace ids in logs and errors


async def test_log_lines_and_errors_of_a_request_contain_the_trace_id(site: Site, recording: Recording) -> None:
    lines = recording()

    response = await site.client.get("/no/such/route", headers={"traceparent": PARENT})

    assert response.json()["trace_id"] == TRACE
    assert [line["trace_id"] for line in lines() if line["logger"] == "app.access"] == [TRACE]


async def test_a_websocket_has_a_trace_id(site: Site) -> None:
    app = create_app(make_settings("postgresql://nobody@127.0.0.1/nothing"), site.database, tracing=site.tracing)
    scope = {"type": "websocket", "path": "/none", "query_string": b"", "headers": [(b"traceparent", PARENT.encode())]}
    sent: list[Any] = []

    async def receive() -> Any: ...

    async def send(message: Any) -> None:
        sent.append(message)

    await app({**scope, "extensions": {"websocket.http.response": {}}}, receive, send)

    assert json.loads(sent[1]["body"])["trace_id"] == TRACE


async def test_without_tracing_nothing_contains_a_trace_id(client: AsyncClient, recording: Recording) -> None:
    lines = recording()

    response = await client.get("/no/such/route", headers={"traceparent": PARENT})

    assert "trace_id" not in response.json()
    assert all("trace_id" not in line for line in lines())


# Jobs


async def ask_for_mail(site: Site, **options: Any) -> None:
    """Send a request whose job enqueues a mail."""
    async with site.database.begin() as session:
        user = await make_user(session)
    await site.client.post("/api/v1/auth/password/forgot", json={"email": user.email}, **options)


async def test_a_job_belongs_to_the_trace_of_the_request_that_enqueued_it(
    clone_url: str, recording: Recording, tmp_path: Any
) -> None:
    lines = recording()
    groups = {"jobs": {"in_process": True}, "mail": {"url": tmp_path.as_uri()}}
    async with traced(clone_url, **groups) as site:
        await ask_for_mail(site, headers={"traceparent": PARENT})
        spans = await site.until("job users.jobs:mail_link")

    # Scheduled jobs may have run in between. The first job of this trace enqueued the second.
    jobs = [span for span in spans if span.name.startswith("job ") and trace_of(span) == TRACE]
    assert [span.name for span in jobs] == ["job account.jobs:forgot_password", "job users.jobs:mail_link"]
    assert all(attributes(span)["attempt"] == 1 for span in jobs)
    done = [line for line in lines() if line["event"] == "job done"]
    assert {line["trace_id"] for line in done if line["job"] not in SCHEDULED} == {TRACE}


async def test_a_failed_job_has_a_failed_span(clone_url: str, unreachable_mail_server: str) -> None:
    groups = {"jobs": {"in_process": True}, "mail": {"url": unreachable_mail_server}}
    async with traced(clone_url, **groups) as site:
        await ask_for_mail(site)
        spans = await site.until("job users.jobs:mail_link")

    (failed,) = [span for span in spans if span.name == "job users.jobs:mail_link"]
    assert attributes(failed)["error.type"] == "MailDelayedError"
    assert not failed.status.is_ok


@pytest.fixture
def unreachable_mail_server() -> str:
    """The address of a mail server that does not exist."""
    return "smtp://127.0.0.1:1"


# Configuration


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
    ],
)
def test_tracing_is_off_unless_enabled(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert tracing_from_environment() is None


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "console"},
    ],
)
def test_the_standard_variables_turn_tracing_on(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    tracing = tracing_from_environment()

    assert tracing
    tracing.shutdown()


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
def test_the_error_for_an_unsupported_value_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match=f"^{name}: {value} "):
        tracing_from_environment()


def test_the_sdk_is_not_loaded_by_default() -> None:
    program = (
        "import sys, app.main, app.worker; sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


async def test_a_server_exports_its_spans_to_the_configured_collector(clone_url: str) -> None:
    received: list[bytes] = []

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        received.append(head.encode() + await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(collect, "127.0.0.1", 0) as collector:
        endpoint = f"http://127.0.0.1:{collector.sockets[0].getsockname()[1]}"
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        async with real_server(clone_url, **variables) as server, AsyncClient(base_url=server.base_url) as client:
            await client.get("/problems/not-found")
            code = await server.stop()

    assert code == 0
    assert received[0].startswith(b"post /v1/traces ")
    assert b"/problems/{name}" in received[0]
    assert product.SLUG.encode() in received[0]
