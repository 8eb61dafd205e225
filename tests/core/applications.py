"""Small applications on the real core: what a feature gets when it builds on it, without any feature."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, override

from fastapi import APIRouter, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from httpx2 import ASGITransport, AsyncClient
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.config import LogSettings
from app.core.db.database import Database
from app.core.db.keyset import CursorSigner
from app.core.errors import UnauthenticatedError
from app.core.http import routing
from app.core.http.access import Guard
from app.core.http.error_handlers import add_error_handlers
from app.core.http.middleware import RequestMiddleware
from app.core.http.openapi import DocumentedAPI, add_documentation
from app.core.http.problems import problem_pages
from tests.conftest import make_settings

CURSOR_KEY = b"a key for cursors of these tests"


class Token(SecurityBase, Guard):
    """Accepts a token that names the scopes of the operation."""

    scheme_name = "test"
    model = HTTPBearer()

    @override
    def errors(self, scopes: Any) -> Any:
        return (UnauthenticatedError,)

    async def __call__(self, request: Request, needed: SecurityScopes) -> str:
        if request.headers.get("authorization") != f"Bearer {needed.scope_str}":
            raise UnauthenticatedError
        return needed.scope_str


token = Token()


def application(
    router: APIRouter,
    *,
    hsts: bool = True,
    max_body_size: int = 4096,
    layers: Sequence[Any] = (),
    log_settings: LogSettings | None = None,
) -> DocumentedAPI:
    """Build an application of this router; `layers` are ASGI middleware between the outermost and the rest."""
    app = DocumentedAPI(title="Test", openapi_url=None, redirect_slashes=False)
    for layer in layers:
        app.add_middleware(layer)
    app.add_middleware(RequestMiddleware, max_body_size=max_body_size, hsts=hsts, log_settings=log_settings)
    add_error_handlers(app)
    routing.include(app, router)
    routing.include(app, problem_pages())
    add_documentation(app)
    return app


def with_state(app: ASGIApp, database: Database | None = None) -> ASGIApp:
    """Give every request the state that the lifespan would."""
    state = {
        "settings": make_settings("postgresql://nobody@127.0.0.1:1/none"),
        "database": database,
        "standby": None,
        "cursors": CursorSigner(CURSOR_KEY),
    }

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    return call


@asynccontextmanager
async def serving(
    app: ASGIApp | APIRouter, database: Database | None = None, **options: Any
) -> AsyncIterator[AsyncClient]:
    """Give a client of the application, or of one made of the router."""
    if isinstance(app, APIRouter):
        app = application(app, **options)
    async with AsyncClient(transport=ASGITransport(with_state(app, database)), base_url="http://test") as client:
        yield client
