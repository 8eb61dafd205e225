"""Mounts: other ASGI applications below a path, such as static files."""

from collections.abc import Mapping

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.http.access import declare_public


def mount_public(
    parent: FastAPI | APIRouter,
    path: str,
    app: ASGIApp,
    *,
    name: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Mount an application that anybody may call, and declare it. An application that needs a login must check that itself.

    `headers` are added to each of its responses that lacks them. They replace the default headers, such as the
    `Content-Security-Policy` that allows a page neither styles nor scripts, and `Cache-Control: no-store`.
    """
    router = parent.router if isinstance(parent, FastAPI) else parent
    middleware = [Middleware(_DefaultHeaders, headers)] if headers else None
    router.routes.append(declare_public(Mount(path, app, name=name, middleware=middleware)))


class _DefaultHeaders:
    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message.get("headers", ())}
                added = [header for header in self._headers if header[0] not in present]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        await self._app(scope, receive, send_with_headers)
