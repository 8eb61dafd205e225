"""Routers and routes with strict request validation. Every operation of every feature uses them."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from typing import Any, Self, override

from fastapi import APIRouter, FastAPI, Request, Response, params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import FormData, QueryParams, UploadFile

from app.core.db.retries import with_retries
from app.core.errors import (
    AppError,
    FieldError,
    InvalidInputError,
    MalformedRequestError,
    NotAcceptableError,
    UnsupportedMediaTypeError,
)
from app.core.http.access import guards, has_optional_caller
from app.core.http.problems import (
    BODY_ERRORS,
    COMMON_ERRORS,
    errors_of_dependencies,
    merged_responses,
    pointer,
    problem_responses,
)
from app.core.http.requests.forms import parse_form
from app.core.http.requests.json_bodies import DuplicateMemberError, TooDeepError, parse_json

_MAX_PARAMETERS = 100
_MAX_RANGES = 100
# Maximum size of a form in bytes, enough for a token of 10 KB. Parsing time grows with the size, and anonymous clients send forms.
MAX_FORM_SIZE = 16_384
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
# Values of `Accept` that need no parsing.
_ACCEPTS_JSON = frozenset({"*/*", JSON})
_JSON_RANGES = (JSON, "application/problem+json", "application/*", "*/*")
_QUALITY_ZERO = re.compile(r"(?:^|;)\s*q=0(?:\.0{0,3})?\s*(?:;|$)", re.IGNORECASE)
REPEATABLE_KEY = "x-repeatable"

type _Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _Request(Request):
    """A request that parses its body strictly, and only once."""

    _parsed: Any = None
    _fields: FormData | None = None

    @override
    async def json(self) -> Any:
        if self._parsed is None:
            self._parsed = parse_json(await self.body())
        return self._parsed

    @override
    async def form(self, **_limits: float) -> FormData:  # type: ignore[override]  # Only awaited, never used in `async with`.
        if self._fields is None:
            fields: list[tuple[str, str | UploadFile]] = [*parse_form(await self.body())]
            self._fields = FormData(fields)
        return self._fields


class Route(APIRoute):
    """An operation that refuses unknown and repeated parameters, other media types and invalid JSON."""

    # Whether error responses also have the members of RFC 6749, `error` and `error_description`.
    has_oauth_errors = False

    @override
    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self._declared = dict(options)
        # By default FastAPI would use the function's name. The first sentence of the docstring says more.
        summary, _, description = inspect.cleandoc(endpoint.__doc__ or "").partition("\n\n")
        options["summary"] = options.get("summary") or " ".join(summary.split()).rstrip(".")
        super().__init__(path, endpoint, **options)
        # `include_router` replaces an empty description by the whole docstring. It removes everything from a form feed on.
        self.description = description or "\f"
        self.responses = merged_responses(problem_responses(*self._errors()), self.responses)
        if has_optional_caller(self.dependant):
            # OpenAPI: an empty requirement makes the others optional. FastAPI appends it to them.
            self.openapi_extra = {**(self.openapi_extra or {}), "security": [{}]}

    def copy_to(self, app: FastAPI, prefix: str) -> Self:
        """Return a copy of the operation for `app`, with `prefix` in front of its path."""
        options = self._declared | {"endpoint": self.endpoint, "dependency_overrides_provider": app}
        route = type(self)(prefix + self.path, **options)
        route.description = route.description.strip()
        return route

    @override
    def get_route_handler(self) -> _Handler:
        handle = self._call_endpoint if self._needs_no_request() else super().get_route_handler()
        work = _with_retries(handle) if self._is_repeatable() else handle
        work = _varying(work) if has_optional_caller(self.dependant) else work
        allowed = frozenset(_query_names(self.dependant))
        media_type = self._media_type()
        # Pages for people and health checks choose their media type themselves.
        is_api = self.include_in_schema

        async def strict(request: Request) -> Response:
            if is_api and (accept := request.headers.get("accept", "*/*")) not in _ACCEPTS_JSON:
                _refuse_accept(accept)
            if request.scope["query_string"]:
                _refuse_parameters(request, allowed)
            if media_type is None:
                return await work(request)
            _refuse_media_type(request, media_type)
            if media_type == FORM:
                request.scope["max_body_size"] = MAX_FORM_SIZE
            request = _Request(request.scope, request.receive)
            if media_type == JSON:
                await request.json()
            else:
                _refuse_repeated([name for name, _ in (await request.form()).multi_items()])
            return await work(request)

        return strict

    def _needs_no_request(self) -> bool:
        """Return whether the endpoint takes no arguments and returns a `Response`, like a health check."""
        signature = inspect.signature(self.endpoint)
        returned = signature.return_annotation
        return (
            not signature.parameters
            and not self.dependant.dependencies
            and inspect.iscoroutinefunction(self.endpoint)
            and isinstance(returned, type)
            and issubclass(returned, Response)
        )

    async def _call_endpoint(self, _request: Request) -> Response:
        # FastAPI would look for parameters, which takes half of the time of such a request.
        response: Response = await self.endpoint()
        return response

    def _is_repeatable(self) -> bool:
        # Without dependencies there is no session, so there is nothing to retry. A dependency that stays open until the response
        # is sent prevents retries, because each attempt would open it again.
        may_repeat: bool = (self.openapi_extra or {}).get(REPEATABLE_KEY, True)
        return may_repeat and bool(self.dependant.dependencies) and not _has_request_scope(self.dependant)

    def _media_type(self) -> str | None:
        if self.body_field is None:
            return None
        return FORM if isinstance(self.body_field.field_info, params.Form) else JSON

    def _errors(self) -> Iterable[type[AppError]]:
        """Yield the errors that every operation with the same kind of input can return."""
        yield from COMMON_ERRORS
        yield NotAcceptableError
        yield MalformedRequestError  # Credentials in the query string are refused everywhere.
        yield InvalidInputError  # Unknown parameters are refused everywhere.
        if self.body_field is not None:
            yield from BODY_ERRORS
            yield from () if self._media_type() == FORM else (DuplicateMemberError, TooDeepError)
        for guard, scopes in guards(self.dependant):
            yield from guard.errors(scopes)
        yield from errors_of_dependencies(self.dependant)


def _with_retries(handle: _Handler) -> _Handler:
    async def work(request: Request) -> Response:
        async def attempt() -> Response:
            # FastAPI puts the dependencies of scope `function` into this stack, and closing it commits. A new stack for each attempt
            # makes the commit a part of the attempt, so a commit that the server rolls back is retried too.
            stack: AsyncExitStack
            async with AsyncExitStack() as stack:
                request.scope["fastapi_function_astack"] = stack
                return await handle(request)

        return await with_retries(attempt)

    return work


def _varying(handle: _Handler) -> _Handler:
    """Make caches keep the response for anonymous callers apart from those for logged-in ones."""

    async def work(request: Request) -> Response:
        response = await handle(request)
        response.headers.add_vary_header("Authorization")
        return response

    return work


def _has_request_scope(dependant: Dependant) -> bool:
    """Return whether a dependency with `yield` stays open until the response is sent."""
    return any(
        (dependency.scope != "function" and _has_yield(dependency.call)) or _has_request_scope(dependency)
        for dependency in dependant.dependencies
    )


def _has_yield(call: Callable[..., Any] | None) -> bool:
    functions = (call, getattr(call, "__call__", None))  # noqa: B004  # A callable object may be a generator function, too.
    return any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in functions)


def options(*, repeatable: bool = True) -> dict[str, Any]:
    """Return the options of an operation, for `openapi_extra=`. Combine them with `public` by `|`.

    With `repeatable=False` the operation is never retried. Use it for side effects outside the database that must not happen twice.
    """
    if not isinstance(repeatable, bool):
        message = "the option repeatable must be True or False"
        raise TypeError(message)
    return {REPEATABLE_KEY: repeatable}


def router(*, prefix: str = "", tags: list[str] | None = None, route_class: type[Route] = Route) -> APIRouter:
    """Return a router for a feature. Use only this function, so that every operation validates its requests strictly."""
    return APIRouter(
        prefix=prefix,
        tags=list(tags or []),
        route_class=route_class,
        # The name of the function: it stays the same when the path changes, and generated clients use it for their method.
        generate_unique_id_function=lambda route: route.name,
    )


def include(app: FastAPI, router: APIRouter, *, prefix: str = "") -> None:
    """Add the operations of a router to the application as one flat list.

    `FastAPI.include_router` keeps routers nested, and each request searches all of them. A flat list saves a sixth of the time
    of a small request. A router with other routes, such as a mount or a WebSocket, is included by `FastAPI.include_router`.
    """
    if all(isinstance(route, Route) for route in router.routes):
        app.router.routes += [route.copy_to(app, prefix) for route in router.routes if isinstance(route, Route)]
    else:
        app.include_router(router, prefix=prefix)


def _query_names(dependant: Dependant) -> Iterable[str]:
    for field in dependant.query_params:
        annotation = field.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from (inner.alias or name for name, inner in annotation.model_fields.items())
        else:
            yield field.alias
    for dependency in dependant.dependencies:
        yield from _query_names(dependency)


def _refuse_parameters(request: Request, allowed: frozenset[str]) -> None:
    # Only the first parameters are checked. The errors in them are enough.
    first, *rest = _split_parameters(request.scope["query_string"])
    given = [name for name, _ in (QueryParams(first) if rest else request.query_params).multi_items()]
    errors = [
        _parameter_error(name, "unknown_parameter", "This operation has no such parameter.")
        for name in given
        if name not in allowed
    ]
    errors += [
        _parameter_error(name, "duplicate_parameter", "This may be given only once.")
        for name, count in Counter(given).items()
        if count > 1 and name in allowed
    ]
    if rest:
        detail = f"A query may have at most {_MAX_PARAMETERS} parameters."
        errors.append(FieldError("#/query", "too_many_parameters", detail))
    if errors:
        raise InvalidInputError(*errors)


def _split_parameters(query: bytes) -> list[bytes]:
    """Return the query, or two parts if it has too many parameters: the first ones, and the rest."""
    if query.count(b"&") < _MAX_PARAMETERS:
        return [query]
    *first, rest = query.split(b"&", _MAX_PARAMETERS)
    return [b"&".join(first), rest]


def _parameter_error(name: str, code: str, detail: str) -> FieldError:
    return FieldError(pointer=pointer("query", name), code=code, detail=detail)


def _refuse_repeated(names: list[str]) -> None:
    errors = [
        FieldError(pointer=pointer(name), code="duplicate_parameter", detail="This may be given only once.")
        for name, count in Counter(names).items()
        if count > 1
    ]
    if errors:
        raise InvalidInputError(*errors)


def _refuse_accept(accept: str) -> None:
    """Refuse a client that does not accept JSON (RFC 9110, 12.5.1). The most specific range decides; invalid ranges are ignored."""
    ranges: dict[str, bool] = {}
    for part in accept.split(",", _MAX_RANGES)[:_MAX_RANGES]:
        media_range, _, parameters = part.partition(";")
        ranges[media_range.strip().lower()] = _QUALITY_ZERO.search(parameters) is None
    if not any("/" in media_range for media_range in ranges):
        return
    if not next((ranges[media_range] for media_range in _JSON_RANGES if media_range in ranges), False):
        raise NotAcceptableError


def _refuse_media_type(request: Request, expected: str) -> None:
    given = request.headers.getlist("content-type")
    encodings = request.headers.getlist("content-encoding")
    if len(given) != 1 or any(encoding.strip().lower() != "identity" for encoding in encodings):
        raise UnsupportedMediaTypeError
    kind, _, parameters = given[0].partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if kind.strip().lower() != expected or charset not in {"", "charset=utf-8"}:
        raise UnsupportedMediaTypeError
