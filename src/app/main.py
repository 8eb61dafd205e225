"""The application as a list of contents: settings in, app out."""

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware

from app.audit import router as audit
from app.auth import pages
from app.auth import router as auth
from app.auth.dependencies import AuthState
from app.auth.revocation import RevocationListener
from app.auth.standing import StandingCheck
from app.auth.tokens import AccessTokens
from app.auth.toolkit import Toolkit
from app.core import product
from app.core.config import Settings
from app.core.db.database import Database
from app.core.db.keyset import CursorSigner
from app.core.http import routing
from app.core.http.access import refuse_undeclared
from app.core.http.addresses import ClientAddresses
from app.core.http.dependencies import ReadinessCheck
from app.core.http.middleware import RequestMiddleware
from app.core.http.openapi import DocumentedAPI, add_documentation
from app.core.http.problems import add_error_handlers, problem_pages
from app.core.observability.exposition import Exposition
from app.core.observability.tracing import Tracing, tracing_from_environment
from app.core.security.hashing import PasswordHasher
from app.core.security.keys import KeyRing, following, load_key_ring
from app.core.security.rate_limits import RateLimiter
from app.health import router as health
from app.health.service import SchemaWatch
from app.jobs.exposing import exposing
from app.migrations import revisions
from app.startup import refuse_to_start
from app.users import router as users

API_PREFIX = "/api/v1"
ROUTERS = (
    users.router,
    *auth.ROUTERS,
    audit.router,
    # A new feature adds its router here.
)

_ELSEWHERE = "app.main has no application: run `app serve`, or another ASGI server such as `uvicorn app.asgi:app`"


def create_app(
    settings: Settings,
    database: Database | None = None,
    *,
    exposition: Callable[[], AbstractContextManager[Exposition | None]] = nullcontext,
    tracing: Tracing | None = None,
    readiness: Sequence[ReadinessCheck] = (),
) -> FastAPI:
    """Build the application.

    The caller disposes of a `database` that it passes in. `exposition` is entered while the application runs; `readiness` adds
    checks to `/readyz`.
    """
    tracing = tracing or tracing_from_environment()
    app = DocumentedAPI(
        title=product.NAME,
        version=product.API_VERSION,
        description=product.DESCRIPTION,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(settings, database, exposition, tracing, readiness),
        telemetry=_telemetry(tracing),
    )
    if settings.server.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.server.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "If-Match", "If-None-Match", "X-Request-ID"],
            expose_headers=["ETag", "Link", "Location", "Retry-After", "WWW-Authenticate", "X-Request-ID"],
        )
    # Added last, so it is outermost: even a refused preflight gets an id, headers and an access line.
    app.add_middleware(
        RequestMiddleware,
        max_body_size=settings.server.max_body_size,
        hsts=settings.environment != "local",
        log_settings=settings.log,
    )
    add_error_handlers(app)
    routing.include(app, health.router)
    for router in ROUTERS:
        routing.include(app, router, prefix=API_PREFIX)
    for router in (auth.well_known, pages.router, problem_pages()):
        routing.include(app, router)
    if settings.serves_docs:
        add_documentation(app)
    refuse_undeclared(app)
    return app


def _lifespan(
    settings: Settings,
    given: Database | None,
    exposition: Callable[[], AbstractContextManager[Exposition | None]],
    tracing: Tracing | None,
    readiness: Sequence[ReadinessCheck],
) -> Callable[[FastAPI], AbstractAsyncContextManager[AuthState]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[AuthState]:
        keys = load_key_ring(settings.auth)
        database = given or Database(settings.database, slow_query=settings.log.slow_query)
        hasher = PasswordHasher(settings.auth)
        listener = RevocationListener(settings.database) if settings.auth.access_check == "memory" else None
        if listener:
            listener.start()
        if tracing:
            tracing.watch(database)
        instruments = [hasher.readings, *([listener.readings] if listener else [])]
        try:
            with exposition() as exposed:
                async with (
                    following(keys),
                    _jobs(settings, database, keys, tracing),
                    exposing(exposed, database, instruments),
                ):
                    yield {
                        "settings": settings,
                        "keys": keys,
                        "database": database,
                        "cursors": CursorSigner(keys.derive("cursor")),
                        "addresses": ClientAddresses(settings.server.trusted_proxies),
                        "schema": _schema(settings).unready,
                        "readiness": (*readiness, *((listener.unready,) if listener else ())),
                        "auth": _toolkit(settings, database, keys, hasher),
                        "standing": StandingCheck(database, listener),
                    }
        finally:
            if listener:
                await listener.stop()
            hasher.close()
            if given is None:
                await database.dispose()
            if tracing:
                await asyncio.to_thread(tracing.shutdown)

    return lifespan


def _jobs(
    settings: Settings, database: Database, keys: KeyRing, tracing: Tracing | None
) -> AbstractAsyncContextManager[None]:
    """Run the jobs inside the web process, where the settings say so."""
    if not settings.runs_jobs_in_process:
        return nullcontext()
    from app import worker

    return worker.in_process(settings, database, keys, tracing)


def _schema(settings: Settings) -> SchemaWatch:
    return SchemaWatch(
        head=revisions.head(), known=revisions.known(), accepts_newer=settings.database.accept_newer_schema
    )


def _toolkit(settings: Settings, database: Database, keys: KeyRing, hasher: PasswordHasher) -> Toolkit:
    lifetime = int(settings.auth.access_token_ttl.total_seconds())
    return Toolkit(
        settings=settings,
        database=database,
        keys=keys,
        hasher=hasher,
        access_tokens=AccessTokens(keys, issuer=settings.issuer, audience=settings.auth.audience, lifetime=lifetime),
        limiter=RateLimiter(database, keys.derive("rate-limit"), enabled=settings.rate_limit.enabled),
    )


def _telemetry(tracing: Tracing | None) -> TelemetryConfig:
    # Requests, not each dependency of theirs. Metrics and logs are ours in any case: they say the same, and cost less.
    chosen: TelemetryConfig = {
        "tracing": tracing is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": _is_probe,
    }
    if tracing:
        chosen["tracer_provider"] = tracing.provider
    return chosen


def _is_probe(scope: MutableMapping[str, Any]) -> bool:
    return scope["path"] in {"/livez", "/readyz"}


# Hidden from type checkers, which would take every name for an attribute of this module.
if not TYPE_CHECKING:  # pragma: no branch  # Always true when it runs.

    def __getattr__(name: str) -> NoReturn:
        """Answer `uvicorn app.main:app`. A server would replace the text of an `AttributeError` with its own."""
        if name == "app":
            refuse_to_start(_ELSEWHERE)
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)


if __name__ == "__main__":
    refuse_to_start(_ELSEWHERE)
