"""Cross-origin requests (CORS): which origins may call, with which headers, and which headers of a response they may read.

`CORSMiddleware` surrounds all others, so that a page can read every response, also an early error. `PreflightMiddleware` is inside
`RequestMiddleware`, so that the response to a preflight has a request id and a log line.
"""

from collections.abc import Collection, Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import ForbiddenError

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
# The first four need no permission as long as their values are short and plain. The last four are those of tracing libraries.
_HEADERS = (
    *("Accept", "Accept-Language", "Content-Language", "Content-Type"),
    *("Authorization", "If-Match", "If-None-Match", "Last-Event-ID", "Token-Transport", "X-Request-ID"),
    *("traceparent", "tracestate", "baggage", "sentry-trace"),
)
_EXPOSED = (
    *("Allow", "Content-Disposition", "ETag", "Link", "Location", "Retry-After", "WWW-Authenticate", "X-Request-ID"),
)
_MAX_AGE = 600
_VARY = "Access-Control-Request-Method, Access-Control-Request-Headers"
# Of a refused preflight, the error names this many headers, and this many characters of each name.
_MAX_NAMED = 5
_MAX_NAME = 64


class CORSRefusedError(ForbiddenError):
    """The origin, the method or a header of a preflight is not allowed."""

    code = "cors_refused"
    detail = "The cross-origin request is not allowed."

    def __init__(self, *refused: str) -> None:
        self.detail = (
            f"The cross-origin request is not allowed: {', '.join(refused)}. The operator of this service can allow origins in "
            "APP_SERVER__CORS_ORIGINS and headers in APP_SERVER__CORS_HEADERS."
        )
        super().__init__(headers={"Vary": _VARY})


class OriginRefusedError(ForbiddenError):
    """A page of another site uses what only pages of this service may use. No preflight protects it alone."""

    code = "origin_refused"
    detail = (
        "Pages of this origin may not use cookies or WebSockets of this service. Its operator can list the origin in "
        "APP_SERVER__CORS_ORIGINS."
    )


class CORSMiddleware:
    """Lets pages of the allowed origins read responses, and marks preflights in the scope.

    With `has_cookies`, pages of the listed origins may send and get cookies.
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str], has_cookies: bool) -> None:
        self._app = app
        self._has_cookies = has_cookies
        self._allows_all = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"origin"]
        allowed = self._allowed_headers(given)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*_varying_by_origin(message.get("headers", ())), *allowed]}
            await send(message)

        if given and scope["method"] == "OPTIONS" and _has(scope, b"access-control-request-method"):
            scope = {**scope, "is_preflight": True, "is_allowed_origin": bool(allowed)}
        await self._app(scope, receive, send_with_headers)

    def _allowed_headers(self, given: list[bytes]) -> list[tuple[bytes, bytes]]:
        if len(given) != 1 or not (self._allows_all or given[0] in self._origins):
            return []
        allowed = [
            (b"access-control-allow-origin", given[0]),
            (b"access-control-expose-headers", ", ".join(_EXPOSED).encode()),
        ]
        # Never for every origin, which `*` means.
        if self._has_cookies and given[0] in self._origins:
            allowed.append((b"access-control-allow-credentials", b"true"))
        return allowed


def _varying_by_origin(headers: Collection[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers of a response. A cache must keep the responses for different origins apart, and those without one."""
    varied = [value for name, value in headers if name == b"vary"]
    yield from (header for header in headers if header[0] not in {b"vary", b"access-control-allow-origin"})
    yield b"vary", b", ".join([*varied, b"Origin"])


def _has(scope: Scope, header: bytes) -> bool:
    return any(name == header for name, _ in scope["headers"])


class PreflightMiddleware:
    """Answers the preflights that `CORSMiddleware` marked."""

    def __init__(self, app: ASGIApp, *, headers: Collection[str]) -> None:
        self._app = app
        allowed = (*_HEADERS, *headers)
        self._names = frozenset(name.lower() for name in allowed)
        self._permission = {
            "Access-Control-Allow-Methods": ", ".join(_METHODS),
            "Access-Control-Allow-Headers": ", ".join(allowed),
            "Access-Control-Max-Age": str(_MAX_AGE),
            "Vary": _VARY,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope.get("is_preflight"):
            await self._app(scope, receive, send)
            return
        if refused := list(self._refused(Request(scope))):
            raise CORSRefusedError(*refused)
        await Response(headers=self._permission)(scope, receive, send)

    def _refused(self, request: Request) -> Iterator[str]:
        if not request.scope["is_allowed_origin"]:
            yield f"the origin {', '.join(request.headers.getlist('origin'))[:_MAX_NAME]}"
        method = request.headers["access-control-request-method"]
        if method not in _METHODS:
            yield f"the method {method[:_MAX_NAME]}"
        asked = ",".join(request.headers.getlist("access-control-request-headers")).split(",")
        names = dict.fromkeys(name.strip().lower() for name in asked if name.strip())
        if refused := [name[:_MAX_NAME] for name in names if name not in self._names]:
            more = f" and {len(refused) - _MAX_NAMED} more" if len(refused) > _MAX_NAMED else ""
            yield f"the header{'s'[: len(refused) - 1]} {', '.join(refused[:_MAX_NAMED])}{more}"
