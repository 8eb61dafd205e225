"""Mounts: other ASGI applications below a path, and this application below a path of its host."""

from collections.abc import Mapping
from http import HTTPStatus

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

    `headers` are added to each of its responses that lacks them, except `Cache-Control` to errors.
    They replace the default headers, such as the `Content-Security-Policy` that allows a page neither styles nor scripts, and
    `Cache-Control: no-store`.
    """
    router = parent.router if isinstance(parent, FastAPI) else parent
    middleware = [Middleware(_DefaultHeaders, headers)] if headers else None
    router.routes.append(declare_public(Mount(path, app, name=name, middleware=middleware)))


class PathPrefixMiddleware:
    """Sets the root path of each request: the path of the public URL below which a proxy offers this application (ASGI 3).

    The proxy may strip the prefix or keep it. Requests that leave it out, such as health checks, get the same responses.
    """

    def __init__(self, app: ASGIApp, *, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A server or an application around this one may have set another root path.
        if scope["type"] != "lifespan" and not scope.get("root_path"):
            scope = {**scope, "root_path": self._prefix}
            if scope["path"] != self._prefix and not scope["path"].startswith(f"{self._prefix}/"):
                scope["path"] = self._prefix + scope["path"]
                scope["raw_path"] = self._prefix.encode() + (scope.get("raw_path") or b"")
        await self._app(scope, receive, send)


class _DefaultHeaders:
    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message.get("headers", ())}
                if message["status"] >= HTTPStatus.BAD_REQUEST:
                    # Another client may not get this error.
                    present.add(b"cache-control")
                added = [header for header in self._headers if header[0] not in present]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        await self._app(scope, receive, send_with_headers)
