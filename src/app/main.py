"""The application as a list of contents: settings in, app out."""

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from app import worker
from app.audit import router as audit
from app.auth import router as auth
from app.auth.dependencies import AuthState
from app.auth.tokens import AccessTokens
from app.core.access import refuse_undeclared
from app.core.config import Settings
from app.core.database import Database
from app.core.documentation import DocumentedAPI, add_documentation
from app.core.keys import load_key_ring
from app.core.keyset import CursorSigner
from app.core.middleware import RequestMiddleware
from app.core.problems import add_error_handlers, problem_pages
from app.core.security import PasswordHasher
from app.health import router as health
from app.users import router as users

API_PREFIX = "/api/v1"
ROUTERS = (
    auth.router,
    auth.me,
    users.router,
    audit.router,
    # A new feature adds its router here.
)


def create_app(settings: Settings, database: Database | None = None) -> FastAPI:
    """Build the application. A `database` passed in stays the caller's to dispose of."""
    app = DocumentedAPI(
        title="Bedplate",
        version="1",
        description="Accounts, login sessions and whatever is built on them.",
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(settings, database),
        generate_unique_id_function=_operation_id,
        telemetry={"tracing": False, "metrics": False, "logs": False},
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
        RequestMiddleware, max_body_size=settings.server.max_body_size, hsts=settings.environment != "local"
    )
    add_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router, prefix=API_PREFIX)
    for router in (auth.well_known, health.router, problem_pages()):
        app.include_router(router)
    if settings.serves_docs:
        add_documentation(app)
    refuse_undeclared(app)
    return app


def _lifespan(
    settings: Settings, given: Database | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[AuthState]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[AuthState]:
        ring = load_key_ring(settings.auth)
        lifetime = int(settings.auth.access_token_ttl.total_seconds())
        database = given or Database(settings.database)
        hasher = PasswordHasher(settings.auth)
        try:
            async with worker.in_process(settings, database, ring):
                # What has been loaded stays: the collector need not look at it again.
                gc.collect()
                gc.freeze()
                yield {
                    "settings": settings,
                    "keys": ring,
                    "database": database,
                    "cursors": CursorSigner(ring.derive("cursor")),
                    "hasher": hasher,
                    "access_tokens": AccessTokens(
                        ring, issuer=settings.issuer, audience=settings.auth.audience, lifetime=lifetime
                    ),
                }
        finally:
            hasher.close()
            if given is None:
                await database.dispose()

    return lifespan


def _operation_id(route: APIRoute) -> str:
    # The function's name: stable under changes of path, and what a generated client calls its method.
    return route.name
