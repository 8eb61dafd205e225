"""Errors as RFC 9457 problem documents: the only place that knows their wire format."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from itertools import chain
from time import monotonic
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from pydantic_core import to_json
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

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
    InternalError,
    InvalidInputError,
    MalformedRequestError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
    UnsupportedMediaTypeError,
    is_out_of_files,
)
from app.core.http.access import public
from app.core.schemas.fields import Omittable
from app.core.validation_messages import detail_of

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_MAX_ERRORS = 20
_MAX_NAME = 64
_NOTE_PAUSE = 1.0

_STATUSES = frozenset(int(status) for status in HTTPStatus)
_SERVER_ERRORS = 500
# Stand for all the numbers that have no name.
_UNKNOWN_CLIENT_ERROR, _UNKNOWN_SERVER_ERROR = 499, 599
# Python 3.13 has renamed it; a code must not depend on that.
_RENAMED = {"REQUESTED_RANGE_NOT_SATISFIABLE": "RANGE_NOT_SATISFIABLE"}
_OVERLOAD = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_DESCRIBE_CONTENT = frozenset({"content-type", "content-length"})


@dataclass(frozen=True, slots=True)
class UnnamedKind:
    """The kind of an error that only its status names: no class of the application stands for it."""

    status: int
    code: str

    @property
    def problem(self) -> str:
        """The name of its page."""
        return self.code.replace("_", "-")

    @property
    def detail(self) -> str:
        """What to say where the error says nothing."""
        return f"{_title(self.problem)}."

    @property
    def oauth_error(self) -> str:
        """What OAuth clients read."""
        return "server_error" if self.status >= _SERVER_ERRORS else "invalid_request"


class FieldProblem(BaseModel):
    """One refused value."""

    pointer: str = Field(description="Where it was: `#/email` in the body, `#/query/limit` in the query.")
    code: str = Field(description="Stable name of what is wrong.")
    detail: str = Field(description="What is wrong, for people.")


class Problem(BaseModel):
    """What every error looks like (RFC 9457)."""

    type: str = Field(description="The kind of error, and the page that explains it.", examples=["/problems/not-found"])
    title: str = Field(description="The kind of error, for people.")
    status: int = Field(description="The HTTP status.", ge=400, le=599)
    detail: str = Field(description="What went wrong this time, for people.")
    instance: str = Field(description="The path that was asked for.")
    request_id: str = Field(description="The same as `X-Request-ID`; quote it to support.")
    code: str = Field(description="Stable name of this very error, for programs.", examples=["not_found"])
    trace_id: Omittable[str] = Field(default=None, description="Where requests are traced: the trace of this one.")
    details: Omittable[Any] = Field(default=None, description="More about this error, where an operation gives more.")
    errors: Omittable[list[FieldProblem]] = Field(default=None, description="The refused values, with 422 only.")
    error: Omittable[str] = Field(default=None, description="RFC 6749 error code, at the token endpoints only.")
    error_description: Omittable[str] = Field(
        default=None, description="RFC 6749 description, at the token endpoints only."
    )


def problem_responses(*errors: type[AppError]) -> dict[int | str, dict[str, Any]]:
    """Declare the errors of an operation, for `responses=`; each becomes an example in OpenAPI."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in sorted(set(errors), key=lambda one: (one.status, one.code)):
        response = responses.setdefault(
            int(error.status),
            {
                "description": error.status.phrase,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        response["content"][MEDIA_TYPE]["examples"][error.code] = {"summary": error.detail, "value": _example(error)}
    return responses


def merged_responses(
    common: dict[int | str, dict[str, Any]], declared: dict[int | str, dict[str, Any]]
) -> dict[int | str, dict[str, Any]]:
    """Add the errors any operation can have to those that one declares; both may share a status."""
    merged = dict(common)
    for status, response in declared.items():
        if status in merged and MEDIA_TYPE in response.get("content", {}):
            examples = merged[status]["content"][MEDIA_TYPE]["examples"]
            examples |= response["content"][MEDIA_TYPE]["examples"]
        else:
            merged[status] = response
    return merged


def _example(error: type[AppError]) -> dict[str, Any]:
    return {
        "type": f"/problems/{error.problem}",
        "title": _title(error.problem),
        "status": int(error.status),
        "detail": error.detail,
        "instance": "/api/v1/…",
        "request_id": "0192f0c1a2b37c4d8e5f60718293a4b5",
        "code": error.code,
    }


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in _STATUSES else ""


def _title(problem: str) -> str:
    return problem.replace("-", " ").capitalize()


def problem_response(scope: Any, error: AppError) -> Response:
    """Render an error; this cannot fail, whatever the request contained."""
    more: dict[str, Any] = {}
    if isinstance(error, InvalidInputError):
        more["errors"] = [
            {"pointer": one.pointer, "code": one.code, "detail": one.detail} for one in error.errors[:_MAX_ERRORS]
        ]
    return _response(scope, error, int(error.status), error.detail, error.headers, more)


def _response(
    scope: Any,
    kind: AppError | type[AppError] | UnnamedKind,
    status: int,
    detail: str,
    headers: Mapping[str, str],
    more: Mapping[str, Any],
) -> Response:
    document: dict[str, Any] = {
        "type": f"/problems/{kind.problem}",
        "title": _title(kind.problem),
        "status": status,
        "detail": detail,
        "instance": quote(scope["path"], safe="/-._~!$&'()*+,;=:@", errors="replace"),
        "request_id": scope.get("request_id", ""),
        "code": kind.code,
        **more,
    }
    if "trace_id" in scope:
        document["trace_id"] = scope["trace_id"]
    sent = dict(headers)
    if _speaks_oauth(scope):
        document |= {"error": kind.oauth_error or "invalid_request", "error_description": detail}
        sent["Pragma"] = "no-cache"
    # ASCII only: a lone surrogate has an escape, but no UTF-8.
    content = json.dumps(document, ensure_ascii=True, separators=(",", ":"))
    return Response(content, status_code=status, headers=sent, media_type=MEDIA_TYPE)


def _speaks_oauth(scope: Any) -> bool:
    # What is refused before the routes are asked (a body too large, say) is still an error of that operation.
    routes = [scope["route"]] if "route" in scope else _matching(scope.get("app"), scope["path"])
    return any(getattr(getattr(route, "original_route", route), "speaks_oauth", False) for route in routes)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every failure with a problem document, the framework's own included."""
    note = _Note("the database cannot answer")

    async def on_app_error(request: Request, error: AppError) -> Response:
        if isinstance(error, DatabaseUnavailableError):
            note.write(error.__cause__ or error)
        return problem_response(request.scope, error)

    async def on_http_error(request: Request, error: HTTPException) -> Response:
        is_error = error.status_code >= HTTPStatus.BAD_REQUEST
        return _http_problem(app, request.scope, error) if is_error else await http_exception_handler(request, error)

    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        return problem_response(request.scope, _from_validation(request.scope, error.errors()))

    async def on_database_error(request: Request, error: Exception) -> Response:
        if isinstance(error, DBAPIError) and _is_declared_as_gone(request, error):
            log.warning("a row refers to one that is gone: %s", constraint_name(error))
            return problem_response(request.scope, GoneMeanwhileError())
        if not is_transient(error):
            raise error
        note.write(error)
        return problem_response(request.scope, DatabaseUnavailableError())

    app.add_exception_handler(AppError, on_app_error)  # type: ignore[arg-type]  # Starlette types every handler as for Exception.
    app.add_exception_handler(HTTPException, on_http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, on_validation_error)  # type: ignore[arg-type]
    for kind in (DBAPIError, PoolTimeoutError):
        app.add_exception_handler(kind, on_database_error)
    _answer_without_files(app)


def _answer_without_files(app: FastAPI) -> None:
    """Answer 503 when no file descriptor is free. Libraries import modules at their first use, and an import opens files."""
    note = _Note("no file descriptor is free")

    async def on_os_error(request: Request, error: Exception) -> Response:
        if not is_out_of_files(error):
            raise error
        note.write(error)
        return problem_response(request.scope, UnavailableError())

    app.add_exception_handler(OSError, on_os_error)


def _is_declared_as_gone(request: Request, error: DBAPIError) -> bool:
    """Say whether a violated foreign key is an answer that the operation declares; anywhere else it is a bug."""
    if sqlstate(error) != FOREIGN_KEY_VIOLATION:
        return False
    declared = getattr(request.scope.get("route"), "responses", {}).get(int(GoneMeanwhileError.status), {})
    examples = declared.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
    return GoneMeanwhileError.code in examples


class _Note:
    """Logs why requests are answered 503. In an outage every request would, so lines of one kind are a second apart."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._written: dict[type, float] = {}
        self._withheld: Counter[type] = Counter()

    def write(self, error: BaseException) -> None:
        """Write a line, unless one about the like was written a moment ago."""
        # The client learns that it may retry. The reason is for the operator.
        reason = getattr(error, "orig", None) or error
        kind, now = type(reason), monotonic()
        if now - self._written.get(kind, float("-inf")) < _NOTE_PAUSE:
            self._withheld[kind] += 1
            return
        self._written[kind] = now
        text = reason if isinstance(error, DBAPIError) or is_out_of_files(error) else repr(error)
        log.warning("%s: %s", self._event, text, extra={"withheld": self._withheld.pop(kind, 0)})


def _http_problem(app: FastAPI, scope: Any, error: HTTPException) -> Response:
    """Render an `HTTPException` of the framework, a library or an endpoint: its status, detail and headers are kept."""
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("HTTP error %d: %s", error.status_code, error.detail, exc_info=error)
    kind = kind_of_status(error.status_code)
    detail, more = _detail_of(error, kind)
    if kind is InvalidInputError:
        more["errors"] = []
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() not in _DESCRIBE_CONTENT}
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers |= _allow(app, scope)
    if error.status_code in _OVERLOAD and not any(name.lower() == "retry-after" for name in headers):
        headers["Retry-After"] = "1"
    return _response(scope, kind, error.status_code, detail, headers, more)


def _detail_of(error: HTTPException, kind: type[AppError] | UnnamedKind) -> tuple[str, dict[str, Any]]:
    """Give the text for people, and the member that keeps a detail that is no text: the framework allows any JSON there."""
    detail: Any = error.detail
    if not isinstance(detail, str):
        return kind.detail, {"details": json.loads(to_json(detail, fallback=repr, inf_nan_mode="strings"))}
    # Raised without a detail, the framework puts the phrase of the status there.
    return (kind.detail if detail == _phrase(error.status_code) else detail), {}


def _allow(app: FastAPI, scope: Any) -> dict[str, str]:
    # An endpoint that refuses its own method names the others itself.
    methods = allowed_methods(app, scope["path"])
    return {} if scope["method"] in methods else {"Allow": ", ".join(methods)}


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """List the methods an address answers to, over all the routes that match it."""
    methods: set[str] = set()
    for route in _matching(app, path):
        # A mount of files has no methods of its own.
        methods |= {"GET"} if isinstance(getattr(route, "app", None), StaticFiles) else set(route.methods or ())
    if "GET" in methods:
        methods.add("HEAD")
    return sorted(methods)


def _matching(app: FastAPI | None, path: str) -> Iterator[Any]:
    for route in iter_route_contexts(app.routes if app else ()):
        pattern: re.Pattern[str] | None = getattr(route, "path_regex", None)
        if pattern is not None and pattern.match(path):
            yield route


def _from_validation(scope: Any, errors: Sequence[Any]) -> AppError:
    others = [error for error in errors if error["loc"][0] != "path"]
    # The operation refuses these before it looks an id up.
    if others:
        return InvalidInputError(*_field_errors(others))
    # An id that cannot exist is answered like one that does not.
    return _not_found(scope["route"], errors[0]["loc"][1])()


def _not_found(route: Any, parameter: str) -> type[AppError]:
    """Give the error with which the operation answers an unknown id in this parameter of its path."""
    examples = route.responses.get(404, {}).get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
    kinds = [kind for kind in _kinds() if kind.code in examples and kind.status == HTTPStatus.NOT_FOUND]
    named = [kind for kind in kinds if kind.code == f"{parameter.removesuffix('_id')}_not_found"]
    return (named or kinds or [NotFoundError])[0]


def _field_errors(errors: Sequence[Any]) -> Iterator[FieldError]:
    for error in errors[:_MAX_ERRORS]:
        place, *names = error["loc"]
        path = names if place == "body" else [place, *names]
        yield FieldError(pointer=pointer(*path), code=error["type"], detail=detail_of(error))


def pointer(*names: str | int) -> str:
    """Write a JSON pointer as a URI fragment (RFC 6901), with names cut to a length that is safe to show."""
    return "#/" + "/".join(
        quote(str(name)[:_MAX_NAME].replace("~", "~0").replace("/", "~1"), errors="replace") for name in names
    )


def _kinds(root: type[AppError] = AppError) -> Iterator[type[AppError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from _kinds(kind)


def kind_of_status(status: int) -> type[AppError] | UnnamedKind:
    """Give the kind of error that stands for a status: one of the application's, or one made of the status' name."""
    for kind in AppError.__subclasses__():
        if kind.status == status:
            return kind
    name = (
        HTTPStatus(status).name
        if status in _STATUSES
        else "SERVER_ERROR"
        if status >= _SERVER_ERRORS
        else "CLIENT_ERROR"
    )
    return UnnamedKind(status, _RENAMED.get(name, name).lower())


def _unnamed_kinds() -> Iterator[UnnamedKind]:
    for status in (*_STATUSES, _UNKNOWN_CLIENT_ERROR, _UNKNOWN_SERVER_ERROR):
        if status >= HTTPStatus.BAD_REQUEST and isinstance(kind := kind_of_status(status), UnnamedKind):
            yield kind


def problem_pages() -> APIRouter:
    """Build the pages behind `type`: one for each kind of error, listing its codes."""
    router = APIRouter(include_in_schema=False)

    @router.get("/problems/{name}", openapi_extra=public)
    async def read_problem(name: str) -> Response:
        kinds: Iterator[type[AppError] | UnnamedKind] = chain(_kinds(), _unnamed_kinds())
        errors = {kind.code: kind for kind in kinds if kind.problem == name}
        if not errors:
            raise NotFoundError
        return Response(_page(name, errors.values()), media_type="text/html")

    return router


def _page(name: str, errors: Iterable[type[AppError] | UnnamedKind]) -> str:
    rows = "".join(
        f"<dt><code>{escape(one.code)}</code> ({int(one.status)})</dt><dd>{escape(one.detail)}</dd>" for one in errors
    )
    title = escape(_title(name))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
        f"<body><h1>{title}</h1><p>Errors of this kind, by their <code>code</code>:</p><dl>{rows}</dl></body></html>"
    )


COMMON_ERRORS: tuple[type[AppError], ...] = (InternalError, UnavailableError, DatabaseUnavailableError)
BODY_ERRORS: tuple[type[AppError], ...] = (
    MalformedRequestError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
    InvalidInputError,
)
