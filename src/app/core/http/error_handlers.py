"""Exception handlers: every exception becomes a problem document."""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from time import monotonic
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from pydantic_core import to_json
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.core.db.failures import (
    FOREIGN_KEY_VIOLATION,
    DatabaseUnavailableError,
    constraint_name,
    is_transient,
    sqlstate,
)
from app.core.errors import (
    AppError,
    FieldError,
    GoneMeanwhileError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
    is_out_of_files,
)
from app.core.http.problems import (
    MAX_ERRORS,
    MEDIA_TYPE,
    UnnamedKind,
    error_kinds,
    kind_of_status,
    pointer,
    problem_response,
    render_problem,
    routes_at,
)
from app.core.validation_messages import detail_of

log = logging.getLogger(__name__)

# Minimum number of seconds between two log lines about the same kind of failure.
_LOG_INTERVAL = 1.0
_OVERLOAD = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_CONTENT_HEADERS = frozenset({"content-type", "content-length"})


def add_error_handlers(app: FastAPI) -> None:
    """Register the handlers, also for the exceptions of the framework and of the database driver."""
    outages = _OutageLog("the database cannot answer")

    async def on_app_error(request: Request, error: AppError) -> Response:
        if isinstance(error, DatabaseUnavailableError):
            outages.write(error.__cause__ or error)
        return problem_response(request.scope, error)

    async def on_http_error(request: Request, error: HTTPException) -> Response:
        is_error = error.status_code >= HTTPStatus.BAD_REQUEST
        return _http_problem(app, request.scope, error) if is_error else await http_exception_handler(request, error)

    async def on_validation_error(
        request: Request, error: RequestValidationError | WebSocketRequestValidationError
    ) -> Response:
        return problem_response(request.scope, _from_validation(request.scope, error.errors()))

    async def on_database_error(request: Request, error: Exception) -> Response:
        if isinstance(error, DBAPIError) and _is_declared_conflict(request, error):
            log.warning("a referenced row no longer exists: %s", constraint_name(error))
            return problem_response(request.scope, GoneMeanwhileError())
        if not is_transient(error):
            raise error
        outages.write(error)
        return problem_response(request.scope, DatabaseUnavailableError())

    app.add_exception_handler(AppError, on_app_error)  # type: ignore[arg-type]  # Starlette types every handler as for Exception.
    app.add_exception_handler(HTTPException, on_http_error)  # type: ignore[arg-type]  # As above.
    app.add_exception_handler(RequestValidationError, on_validation_error)  # type: ignore[arg-type]  # As above.
    app.add_exception_handler(WebSocketRequestValidationError, on_validation_error)  # type: ignore[arg-type]  # As above.
    for kind in (DBAPIError, PoolTimeoutError):
        app.add_exception_handler(kind, on_database_error)
    _add_out_of_files_handler(app)


def _add_out_of_files_handler(app: FastAPI) -> None:
    """Return 503 if no file descriptor is free. Even an import needs one: libraries import some modules at their first use."""
    outages = _OutageLog("no file descriptor is free")

    async def on_os_error(request: Request, error: Exception) -> Response:
        if not is_out_of_files(error):
            raise error
        outages.write(error)
        return problem_response(request.scope, UnavailableError())

    app.add_exception_handler(OSError, on_os_error)


def _is_declared_conflict(request: Request, error: DBAPIError) -> bool:
    """Return whether a foreign key is violated and the operation declares `GoneMeanwhileError`. An undeclared one is a bug."""
    if sqlstate(error) != FOREIGN_KEY_VIOLATION:
        return False
    declared = getattr(request.scope.get("route"), "responses", {}).get(int(GoneMeanwhileError.status), {})
    examples = declared.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
    return GoneMeanwhileError.code in examples


class _OutageLog:
    """Logs why requests get 503. It writes one line per second and kind, because an outage fails every request."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._written: dict[type, float] = {}
        self._withheld: Counter[type] = Counter()

    def write(self, error: BaseException) -> None:
        """Write a line. If the last one of this kind is less than a second old, only count it, for the member `withheld` of the next."""
        reason = getattr(error, "orig", None) or error
        kind, now = type(reason), monotonic()
        if now - self._written.get(kind, float("-inf")) < _LOG_INTERVAL:
            self._withheld[kind] += 1
            return
        self._written[kind] = now
        text = reason if isinstance(error, DBAPIError) or is_out_of_files(error) else repr(error)
        log.warning("%s: %s", self._event, text, extra={"withheld": self._withheld.pop(kind, 0)})


def _http_problem(app: FastAPI, scope: Scope, error: HTTPException) -> Response:
    """Render an `HTTPException` of the framework, a library or an endpoint. It keeps its status, detail and headers."""
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("HTTP error %d: %s", error.status_code, error.detail, exc_info=error)
    kind = kind_of_status(error.status_code)
    detail, more = _detail_of(error, kind)
    if kind is InvalidInputError:
        more["errors"] = []
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() not in _CONTENT_HEADERS}
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers |= _allow(app, scope)
    if error.status_code in _OVERLOAD and not any(name.lower() == "retry-after" for name in headers):
        headers["Retry-After"] = "1"
    return render_problem(scope, kind, error.status_code, detail, headers, more)


def _detail_of(error: HTTPException, kind: type[AppError] | UnnamedKind) -> tuple[str, dict[str, Any]]:
    """Return the text of the detail. A detail that is not text becomes the member `details`: FastAPI allows any JSON there."""
    detail: Any = error.detail
    if not isinstance(detail, str):
        return kind.detail, {"details": json.loads(to_json(detail, fallback=repr, inf_nan_mode="strings"))}
    # Without a detail, Starlette uses the phrase of the status.
    phrase = HTTPStatus(error.status_code).phrase if error.status_code in HTTPStatus else ""
    return (kind.detail if detail == phrase else detail), {}


def _allow(app: FastAPI, scope: Scope) -> dict[str, str]:
    """Return `Allow` with the methods of the routes that match the path.

    A path that is declared itself, such as `/users/me`, does not have the methods of `/users/{user_id}` too.
    """
    methods: set[str] = set()
    routes = list(routes_at(app, scope))
    fewest = min((route.path.count("{") for route in routes), default=0)
    for route in (route for route in routes if route.path.count("{") == fewest):
        # A mount of static files declares no methods.
        methods |= {"GET"} if isinstance(getattr(route, "app", None), StaticFiles) else set(route.methods or ())
    if "GET" in methods:
        methods.add("HEAD")
    # An endpoint that raises 405 for its own method sets `Allow` itself.
    return {"Allow": ", ".join(sorted(methods))} if methods and scope["method"] not in methods else {}


def _from_validation(scope: Scope, errors: Sequence[Any]) -> AppError:
    others = [error for error in errors if tuple(error.get("loc", ()))[:1] != ("path",)]
    # Other invalid input is reported first. Every operation also checks its input before it looks for an id.
    if others or not errors:
        return InvalidInputError(*_field_errors(others))
    # A malformed id gets the same response as an unknown one.
    return _not_found(scope.get("route"), str(errors[0]["loc"][-1]))()


def _not_found(route: Any, parameter: str) -> type[AppError]:
    """Return the error that the operation declares for an unknown id in this path parameter."""
    examples = getattr(route, "responses", {}).get(404, {}).get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
    kinds = [kind for kind in error_kinds() if kind.code in examples and kind.status == HTTPStatus.NOT_FOUND]
    named = [kind for kind in kinds if kind.code == f"{parameter.removesuffix('_id')}_not_found"]
    return (named or kinds or [NotFoundError])[0]


def _field_errors(errors: Sequence[Any]) -> Iterator[FieldError]:
    for error in errors[:MAX_ERRORS]:
        names = list(error.get("loc", ()))
        path = names[1:] if names[:1] == ["body"] else names
        yield FieldError(pointer=pointer(*path), code=error.get("type", "value_error"), detail=detail_of(error))
