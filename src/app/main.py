"""Builds the FastAPI application from the settings and the features."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi import APIRouter, FastAPI
from fastapi.telemetry import TelemetryConfig

from app import features
from app.auth.settings import AuthSettings
from app.core import product
from app.core.config import KeySettings, Settings
from app.core.db.database import Database
from app.core.db.keyset import CursorSigner
from app.core.http import routing
from app.core.http.access import call_guards_first, refuse_undeclared, refuse_unusable_sockets
from app.core.http.addresses import ClientAddresses
from app.core.http.browsers.cors import CORSMiddleware, PreflightMiddleware
from app.core.http.dependencies import CoreState
from app.core.http.error_handlers import add_error_handlers
from app.core.http.middleware import RequestMiddleware
from app.core.http.mounts import PathPrefixMiddleware
from app.core.http.openapi import DocumentedAPI, add_documentation
from app.core.http.problems import problem_pages
from app.core.http.sockets.exchange import SocketMiddleware
from app.core.notifications.broadcasts import Broadcasts
from app.core.observability import event_loop
from app.core.observability.exposition import Exposition
from app.core.observability.metrics import Instrument
from app.core.observability.tracing import Tracing, tracing_from_environment
from app.core.resources import Foundation, ReadinessCheck, Resources, opened
from app.core.security.keys import KeyRing, load_key_ring, reloading
from app.core.shutdown import Shutdown
from app.core.standby.reading import Standby, reading_from_standby
from app.health.service import SchemaWatch
from app.jobs.metrics import serving_metrics
from app.jobs.settings import runs_in_web_process
from app.migrations import revisions
from app.startup import refuse_to_start

API_PREFIX = "/api/v1"
_PROBES = frozenset({"/livez", "/readyz"})

_NO_APPLICATION = "app.main has no application: run `app serve`, or another ASGI server such as `uvicorn app.asgi:app`"


def create_app(
    settings: Settings,
    database: Database | None = None,
    *,
    exposition: Callable[[], AbstractContextManager[Exposition | None]] = nullcontext,
    tracing: Tracing | None = None,
    readiness: Sequence[ReadinessCheck] = (),
    shutdown: Callable[[], AbstractContextManager[Shutdown]] = lambda: nullcontext(Shutdown()),
) -> FastAPI:
    """Build the application. A caller that passes in a `database` disposes of it. `readiness` adds checks to `/readyz`.

    Event streams end when the `shutdown` begins.
    """
    tracing = tracing or tracing_from_environment()
    app = DocumentedAPI(
        title=product.NAME,
        version=product.API_VERSION,
        description=product.DESCRIPTION,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=partial(_lifespan, settings, database, exposition, tracing, readiness, shutdown),
        telemetry=_telemetry(tracing, settings.server.path_prefix),
    )
    _add_middleware(app, settings)
    add_error_handlers(app)
    for router, prefix in _routers():
        routing.include(app, router, prefix=prefix)
    routing.include(app, problem_pages())
    if settings.serves_docs:
        add_documentation(app)
    refuse_undeclared(app)
    call_guards_first(app)
    refuse_unusable_sockets(app)
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    # Each one surrounds those that were added before it.
    if settings.server.cors_origins:
        app.add_middleware(PreflightMiddleware, headers=settings.server.cors_headers)
    app.add_middleware(
        RequestMiddleware,
        max_body_size=settings.server.max_body_size,
        hsts=settings.environment != "local",
        log_settings=settings.log,
        others=partial(
            SocketMiddleware,
            origins=settings.trusted_origins.union(settings.server.cors_origins),
            max_sockets=settings.server.max_sockets,
            max_message_size=settings.server.max_message_size,
            hsts=settings.environment != "local",
            log_settings=settings.log,
        ),
    )
    if settings.server.cors_origins:
        has_cookies = settings.of(AuthSettings).cookie_transport
        app.add_middleware(CORSMiddleware, origins=settings.server.cors_origins, has_cookies=has_cookies)
    if settings.server.path_prefix:
        app.add_middleware(PathPrefixMiddleware, prefix=settings.server.path_prefix)


def _routers() -> Iterator[tuple[APIRouter, str]]:
    """Yield the routers of each feature with their prefix: `ROUTERS` are below `/api/v1`, `ROOT_ROUTERS` have none."""
    for feature, module in features.parts("router"):
        routers = [
            *((router, "") for router in getattr(module, "ROOT_ROUTERS", ())),
            *((router, API_PREFIX) for router in getattr(module, "ROUTERS", ())),
        ]
        if not routers:
            message = f"app.{feature}.router has neither ROUTERS nor ROOT_ROUTERS: add `ROUTERS = (router,)`"
            raise TypeError(message)
        yield from routers


@asynccontextmanager
async def _lifespan(
    settings: Settings,
    given: Database | None,
    exposition: Callable[[], AbstractContextManager[Exposition | None]],
    tracing: Tracing | None,
    readiness: Sequence[ReadinessCheck],
    shutdown: Callable[[], AbstractContextManager[Shutdown]],
    app: FastAPI,
) -> AsyncIterator[dict[str, Any]]:
    # Again, for routes that were added after `create_app`.
    refuse_undeclared(app)
    call_guards_first(app)
    refuse_unusable_sockets(app)
    keys = load_key_ring(settings.of(KeySettings))
    database = given or Database(settings.database, slow_query=settings.log.slow_query)
    if tracing:
        tracing.trace_statements(database)
    try:
        with exposition() as exposed, shutdown() as stopping:
            foundation = Foundation(settings, database, keys, stopping)
            async with (
                reloading(keys),
                Broadcasts(settings.database, stopping).running() as broadcasts,
                opened(features.openers("open_for_web"), foundation) as resources,
                reading_from_standby(settings.database, database, tracing) as standby,
                _jobs(settings, database, keys, tracing),
                serving_metrics(exposed, database, _instruments(resources, broadcasts, standby)),
            ):
                core = CoreState(
                    settings=settings,
                    database=database,
                    standby=standby,
                    broadcasts=broadcasts,
                    keys=keys,
                    cursors=CursorSigner(keys.derive("cursor")),
                    addresses=ClientAddresses(settings.server.trusted_proxies),
                    schema=SchemaWatch(
                        head=revisions.head(),
                        known=revisions.known(),
                        accepts_newer=settings.database.accept_newer_schema,
                    ).unready,
                    readiness=(*readiness, *resources.readiness),
                )
                with event_loop.watching(settings.slow_callback):
                    yield {**core, **resources.state}
    finally:
        if given is None:
            await database.dispose()
        if tracing:
            await asyncio.to_thread(tracing.shutdown)


def _instruments(resources: Resources, broadcasts: Broadcasts, standby: Standby | None) -> list[Instrument]:
    return [*resources.instruments, broadcasts.readings, *([standby.readings] if standby else [])]


def _jobs(
    settings: Settings, database: Database, keys: KeyRing, tracing: Tracing | None
) -> AbstractAsyncContextManager[None]:
    """Run the jobs inside the web process, if the settings enable it."""
    if not runs_in_web_process(settings):
        return nullcontext()
    from app import worker

    return worker.in_process(settings, database, keys, tracing)


def _telemetry(tracing: Tracing | None, prefix: str) -> TelemetryConfig:
    # A span per request, not per dependency. Our own metrics and logs contain the same facts and cost less.
    config: TelemetryConfig = {
        "tracing": tracing is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope["path"].removeprefix(prefix) in _PROBES,
    }
    if tracing:
        config["tracer_provider"] = tracing.provider
    return config


# Type checkers must not see this function: they would then accept every name as an attribute of this module.
if not TYPE_CHECKING:  # pragma: no branch  # Always true at run time.

    def __getattr__(name: str) -> NoReturn:
        """Explain the mistake `uvicorn app.main:app`. A server would replace the text of an `AttributeError` with its own."""
        if name == "app":
            refuse_to_start(_NO_APPLICATION)
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)


if __name__ == "__main__":
    refuse_to_start(_NO_APPLICATION)
