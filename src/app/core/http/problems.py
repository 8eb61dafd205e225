"""Problem documents (RFC 9457): the format of every error response, its declaration in OpenAPI and its HTML pages."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from http import HTTPStatus
from itertools import chain
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.types import Scope

from app.core.db.failures import DatabaseUnavailableError
from app.core.errors import (
    AppError,
    InternalError,
    InvalidInputError,
    MalformedRequestError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from app.core.http.access import public
from app.core.schemas.fields import Omittable

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20
_MAX_NAME = 64
# Attribute of a dependency that `raises` sets.
_RAISES = "declared_errors"

_SERVER_ERRORS = 500
# Statuses that Python's `HTTPStatus` does not know have one page for 4xx and one for 5xx. These numbers stand for both groups.
_UNKNOWN_CLIENT_ERROR, _UNKNOWN_SERVER_ERROR = 499, 599
# Python 3.13 renames this status. The code must be the same in every Python version.
_RENAMED = {"REQUESTED_RANGE_NOT_SATISFIABLE": "RANGE_NOT_SATISFIABLE"}


@dataclass(frozen=True, slots=True)
class UnnamedKind:
    """The kind of an HTTP status for which the application has no error class."""

    status: int
    code: str

    @property
    def problem(self) -> str:
        """Name of the page that explains this kind."""
        return self.code.replace("_", "-")

    @property
    def detail(self) -> str:
        """Text for an error without a detail of its own."""
        return f"{_title(self.problem)}."

    @property
    def oauth_error(self) -> str:
        """Error code for OAuth clients."""
        return "server_error" if self.status >= _SERVER_ERRORS else "invalid_request"


type Kind = AppError | type[AppError] | UnnamedKind


class FieldProblem(BaseModel):
    """One refused value."""

    pointer: str = Field(description="Where the value was: `#/email` in the body, `#/query/limit` in the query.")
    code: str = Field(description="Stable name of what is wrong.")
    detail: str = Field(description="What is wrong, for people.")


class Problem(BaseModel):
    """An error response (RFC 9457)."""

    type: str = Field(description="The kind of error, and the page that explains it.", examples=["/problems/not-found"])
    title: str = Field(description="The kind of error, for people.")
    status: int = Field(description="The HTTP status.", ge=400, le=599)
    detail: str = Field(description="What went wrong in this request, for people.")
    instance: str = Field(description="The path of the request.")
    request_id: str = Field(description="The same as `X-Request-ID`. Give it to support.")
    code: str = Field(description="Stable name of the error, for programs.", examples=["not_found"])
    trace_id: Omittable[str] = Field(default=None, description="The trace of this request, if tracing is on.")
    details: Omittable[Any] = Field(default=None, description="More about the error, from some operations.")
    errors: Omittable[list[FieldProblem]] = Field(default=None, description="The refused values, with 422 only.")
    error: Omittable[str] = Field(default=None, description="RFC 6749 error code, at the token endpoints only.")
    error_description: Omittable[str] = Field(
        default=None, description="RFC 6749 description, at the token endpoints only."
    )
    mfa_token: Omittable[str] = Field(
        default=None, description="With `mfa_required` only: proves the password at the second leg of the login."
    )
    expires_in: Omittable[int] = Field(default=None, description="With `mfa_required` only: the token's seconds.")
    methods: Omittable[list[str]] = Field(
        default=None, description="With `mfa_required` only: what the second leg accepts, such as `totp`."
    )


def problem_responses(*errors: type[AppError]) -> dict[int | str, dict[str, Any]]:
    """Declare errors of an operation, for `responses=`. Each one becomes an example in OpenAPI."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in sorted(set(errors), key=lambda one: (one.status, one.code, one.__qualname__)):
        response = responses.setdefault(
            int(error.status),
            {
                "description": error.status.phrase,
                "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}},
            },
        )
        response["content"][MEDIA_TYPE]["examples"][error.code] = {"summary": error.detail, "value": _example(error)}
    return responses


def raises[Function: Callable[..., Any]](*errors: type[AppError]) -> Callable[[Function], Function]:
    """Declare the errors of a dependency. Every operation that uses it lists them in OpenAPI."""

    def declare(function: Function) -> Function:
        function.__dict__[_RAISES] = errors
        return function

    return declare


def errors_of_dependencies(dependant: Dependant) -> Iterator[type[AppError]]:
    """Yield the errors that the dependencies of an operation declare with `raises`."""
    for dependency in dependant.dependencies:
        yield from getattr(dependency.call, _RAISES, ())
        yield from errors_of_dependencies(dependency)


def merged_responses(
    common: dict[int | str, dict[str, Any]], declared: dict[int | str, dict[str, Any]]
) -> dict[int | str, dict[str, Any]]:
    """Merge the errors that every operation can return with those that one operation declares. Both may share a status."""
    merged = dict(common)
    for status, response in declared.items():
        if status in merged and MEDIA_TYPE in response.get("content", {}):
            examples = merged[status]["content"][MEDIA_TYPE]["examples"]
            examples |= response["content"][MEDIA_TYPE]["examples"]
        else:
            merged[status] = response
    return merged


def _example(error: type[AppError]) -> dict[str, Any]:
    return _document(error, int(error.status), error.detail, "/api/v1/…", "0192f0c1a2b37c4d8e5f60718293a4b5")


def _document(kind: Kind, status: int, detail: str, instance: str, request_id: str) -> dict[str, Any]:
    return {
        "type": f"/problems/{kind.problem}",
        "title": _title(kind.problem),
        "status": status,
        "detail": detail,
        "instance": instance,
        "request_id": request_id,
        "code": kind.code,
    }


def _title(problem: str) -> str:
    return problem.replace("-", " ").capitalize()


def problem_response(scope: Any, error: AppError) -> Response:
    """Render an error. This never raises, for any content of the request."""
    more = dict(error.members)
    if isinstance(error, InvalidInputError):
        more["errors"] = [asdict(one) for one in error.errors[:MAX_ERRORS]]
    return render_problem(scope, error, int(error.status), error.detail, error.headers, more)


def render_problem(
    scope: Any, kind: Kind, status: int, detail: str, headers: Mapping[str, str], more: Mapping[str, Any]
) -> Response:
    instance = quote(scope["path"], safe="/-._~!$&'()*+,;=:@", errors="replace")
    document = {**_document(kind, status, detail, instance, scope.get("request_id", "")), **more}
    document["type"] = root_path(scope) + document["type"]
    if "trace_id" in scope:
        document["trace_id"] = scope["trace_id"]
    sent = dict(headers)
    if _has_oauth_errors(scope):
        document |= {"error": kind.oauth_error, "error_description": detail}
        sent["Pragma"] = "no-cache"
    # ASCII only: JSON can escape a lone surrogate, but UTF-8 cannot encode it.
    content = json.dumps(document, ensure_ascii=True, separators=(",", ":"))
    return Response(content, status_code=status, headers=sent, media_type=MEDIA_TYPE)


def _has_oauth_errors(scope: Scope) -> bool:
    # A request that is refused before routing, for example because its body is too large, has no route yet.
    routes = [scope["route"]] if "route" in scope else routes_at(scope.get("app"), scope)
    return any(getattr(getattr(route, "original_route", route), "has_oauth_errors", False) for route in routes)


def root_path(scope: Scope) -> str:
    """Return the path below which clients reach the application. Inside a mount, `root_path` is that of the mount."""
    path: str = scope.get("app_root_path", scope.get("root_path", ""))
    return path.rstrip("/")


def routes_at(app: FastAPI | None, scope: Scope) -> Iterator[Any]:
    """Yield the routes that match the path of a request, for any method."""
    path, root = scope["path"], root_path(scope)
    if path.startswith(f"{root}/"):
        # `root_path` is a prefix of the path (ASGI 3).
        path = path.removeprefix(root)
    for route in iter_route_contexts(app.routes if app else ()):
        pattern: re.Pattern[str] | None = getattr(route, "path_regex", None)
        if pattern is not None and pattern.match(path):
            yield route


def largest_body_limit(scope: Scope) -> int:
    """Return the largest `max_body_size` of the operations that may get a request that is not routed yet, or 0."""
    operations = [getattr(route, "original_route", route) for route in routes_at(scope.get("app"), scope)]
    limits = [
        operation.operation_options.max_body_size
        for operation in operations
        if hasattr(operation, "operation_options") and scope["method"] in (operation.methods or ())
    ]
    return max((limit for limit in limits if limit is not None), default=0)


def pointer(*names: str | int) -> str:
    """Return a JSON pointer as a URI fragment (RFC 6901). Each name is cut to 64 characters."""
    return "#/" + "/".join(
        quote(str(name)[:_MAX_NAME].replace("~", "~0").replace("/", "~1"), errors="replace") for name in names
    )


def error_kinds(root: type[AppError] = AppError) -> Iterator[type[AppError]]:
    """Yield every error class below `root`."""
    for kind in root.__subclasses__():
        yield kind
        yield from error_kinds(kind)


def kind_of_status(status: int) -> type[AppError] | UnnamedKind:
    """Return the kind of error for a status: a class of the application, or a kind named after the status."""
    for kind in AppError.__subclasses__():
        if kind.status == status:
            return kind
    group = "SERVER_ERROR" if status >= _SERVER_ERRORS else "CLIENT_ERROR"
    name = HTTPStatus(status).name if status in HTTPStatus else group
    return UnnamedKind(status, _RENAMED.get(name, name).lower())


def _unnamed_kinds() -> Iterator[UnnamedKind]:
    for status in (*HTTPStatus, _UNKNOWN_CLIENT_ERROR, _UNKNOWN_SERVER_ERROR):
        if status >= HTTPStatus.BAD_REQUEST and isinstance(kind := kind_of_status(status), UnnamedKind):
            yield kind


def problem_pages() -> APIRouter:
    """Make the router of the pages to which `type` points. Each page lists the codes of one kind of error."""
    router = APIRouter(include_in_schema=False)

    @router.get("/problems/{name}", openapi_extra=public)
    async def read_problem(name: str) -> Response:
        kinds: Iterator[type[AppError] | UnnamedKind] = chain(error_kinds(), _unnamed_kinds())
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
