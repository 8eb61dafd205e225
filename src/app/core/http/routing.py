"""Routers and routes with strict request validation. Every operation of every feature uses them."""

import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack
from typing import Any, Self, override

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.requests import HTTPConnection
from fastapi.routing import APIRoute, APIWebSocketRoute, get_request_handler
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from app.core.db.retries import with_retries
from app.core.db.timeouts import statement_timeout
from app.core.errors import AppError, InvalidInputError, MalformedRequestError, NotAcceptableError
from app.core.http.access import Guard, guards, has_optional_caller
from app.core.http.dependencies import get_session
from app.core.http.problems import (
    BODY_ERRORS,
    COMMON_ERRORS,
    errors_of_dependencies,
    merged_responses,
    problem_responses,
)
from app.core.http.requests.bodies import (
    FORM,
    JSON,
    MAX_FORM_SIZE,
    MULTIPART,
    Reader,
    body_fields,
    form_reader,
    limited,
    media_type_of,
    multipart_reader,
    raw_reader,
    read_json,
    refuse_impossible,
)
from app.core.http.requests.json_bodies import DuplicateMemberError, TooDeepError
from app.core.http.requests.multipart import MalformedFormError, StorageFullError, UnsupportedPartError
from app.core.http.requests.negotiation import accept_of, preferred, success_types
from app.core.http.requests.options import Options, options
from app.core.http.requests.parameters import query_parameters, refuse_parameters

__all__ = [
    "FORM",
    "JSON",
    "MAX_FORM_SIZE",
    "MULTIPART",
    "Route",
    "include",
    "options",
    "refuse_undeclared_parameters",
    "router",
]

type _Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Route(APIRoute):
    """An operation that refuses unknown and repeated parameters, other media types and invalid JSON."""

    # Whether error responses also have the members of RFC 6749, `error` and `error_description`.
    has_oauth_errors = False

    @override
    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self._declared = dict(options)
        self.operation_options = Options.read(options.get("openapi_extra") or {})
        if options.get("max_body_size") is not None:
            message = (
                "write openapi_extra=routing.options(max_body_size=…): FastAPI's own limit cannot exceed the server's"
            )
            raise ValueError(message)
        # By default FastAPI would use the function's name. The first sentence of the docstring says more.
        summary, _, description = inspect.cleandoc(endpoint.__doc__ or "").partition("\n\n")
        options["summary"] = options.get("summary") or " ".join(summary.split()).rstrip(".")
        super().__init__(path, endpoint, **options)
        # `include_router` replaces an empty description by the whole docstring. It removes everything from a form feed on.
        self.description = description or "\f"
        self.responses = merged_responses(problem_responses(*self._errors()), self.responses)
        # Only what can run again: if the standby fails, the operation is retried on the primary. With a session for writing, a
        # read may belong to the write.
        self.reads_from_standby = self.methods == {"GET"} and self._is_repeatable() and not _writes(self.dependant)
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
        work = self._with_options(work)
        declared = query_parameters(self.dependant)
        accepts_others = self.operation_options.accepts_extra_parameters
        read = self._body_reader()
        # Pages for people and health checks choose their media type themselves.
        types = self.media_types if self.include_in_schema else ()
        always = {"*/*", *types}

        async def strict(request: Request) -> Response:
            if types and (accept := accept_of(request.headers)) not in always:
                preferred(accept, types)
            if request.scope["query_string"]:
                refuse_parameters(request, declared, accepts_others=accepts_others)
            return await work(request if read is None else await read(request))

        return strict

    @property
    def media_types(self) -> tuple[str, ...]:
        """The declared media types of a successful response. Empty if the class of the response has none."""
        given: Any = self.response_class
        kind: type[Response] = getattr(given, "value", given)
        # A generator without a class of its own streams one JSON object per line.
        return success_types("application/jsonl" if self.is_json_stream else kind.media_type, self.responses)

    @override
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self.operation_options.statement_timeout
        if limit is None:
            await super().handle(scope, receive, send)
            return
        # Around the response, too: a response that streams rows runs its statements after the endpoint has returned.
        with statement_timeout(limit):
            await super().handle(scope, receive, send)

    def _with_options(self, work: _Handler) -> _Handler:
        if len(self.media_types) > 1:
            work = _with_vary(work, "Accept")
        # Caches must keep the response for anonymous callers apart from those for logged-in ones.
        return _with_vary(work, "Authorization") if has_optional_caller(self.dependant) else work

    def _body_reader(self) -> Reader | None:
        chosen, kind = self.operation_options, self._media_type()
        fields = list(body_fields(self.dependant))
        if kind and chosen.consumes and kind not in chosen.consumes:
            message = f"{self.path} declares a body, so it cannot have the option consumes; remove one of them"
            raise ValueError(message)
        refuse_impossible(kind, fields)
        read: Reader | None = None
        if kind == JSON:
            read = read_json
        elif kind == FORM:
            read = form_reader(fields)
        elif kind == MULTIPART:
            read = multipart_reader(fields, self.form_limits)
        elif chosen.consumes:
            read = raw_reader(chosen.consumes)
        if read and (kind == MULTIPART or chosen.max_body_size):
            read = _after_access(read, self.dependant, self.dependency_overrides_provider)
        return limited(read, kind, chosen.max_body_size, chosen.body_timeout)

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
        may_repeat = self.operation_options.is_repeatable and not self._streams_body()
        return may_repeat and bool(self.dependant.dependencies) and not _has_request_scope(self.dependant)

    def _streams_body(self) -> bool:
        # Files and raw bodies can be read once, and usually go to another system.
        return self._media_type() == MULTIPART or bool(self.operation_options.consumes)

    def _media_type(self) -> str | None:
        return None if self.body_field is None else media_type_of(self.body_field.field_info)

    def _errors(self) -> Iterable[type[AppError]]:
        """Yield the errors that every operation with the same kind of input can return."""
        yield from COMMON_ERRORS
        yield NotAcceptableError
        yield MalformedRequestError  # Credentials in the query string are refused everywhere.
        yield InvalidInputError  # Unknown parameters are refused everywhere.
        kind = self._media_type()
        if kind or self.operation_options.consumes:
            yield from BODY_ERRORS
        if kind == JSON:
            yield from (DuplicateMemberError, TooDeepError)
        elif kind == MULTIPART:
            yield from (MalformedFormError, UnsupportedPartError, StorageFullError)
        for guard, scopes in guards(self.dependant):
            yield from guard.errors(scopes)
        yield from errors_of_dependencies(self.dependant)


def _with_retries(handle: _Handler) -> _Handler:
    attempt = _in_own_stack(handle)

    async def work(request: Request) -> Response:
        return await with_retries(lambda: attempt(request))

    return work


def _in_own_stack(handle: _Handler) -> _Handler:
    async def attempt(request: Request) -> Response:
        # FastAPI puts the dependencies of scope `function` into this stack, and closing it commits. A new stack for each attempt
        # makes the commit a part of the attempt, so a commit that the server rolls back is retried too.
        stack: AsyncExitStack
        async with AsyncExitStack() as stack:
            request.scope["fastapi_function_astack"] = stack
            return await handle(request)

    return attempt


def _has_request_scope(dependant: Dependant) -> bool:
    """Return whether a dependency with `yield` stays open until the response is sent."""
    return any(
        (dependency.scope != "function" and _has_yield(dependency.call)) or _has_request_scope(dependency)
        for dependency in dependant.dependencies
    )


def _writes(dependant: Dependant) -> bool:
    return dependant.call is get_session or any(map(_writes, dependant.dependencies))


def _has_yield(call: Callable[..., Any] | None) -> bool:
    functions = (call, getattr(call, "__call__", None))  # noqa: B004  # A callable object may be a generator function, too.
    return any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in functions)


def _with_vary(handle: _Handler, header: str) -> _Handler:
    async def work(request: Request) -> Response:
        response = await handle(request)
        response.headers.add_vary_header(header)
        return response

    return work


def _after_access(read: Reader, dependant: Dependant, provider: Any) -> Reader:
    """Call the guards of an operation before its body is read, so that only clients with access can send a large one.

    FastAPI reads a body first. It calls the guards again afterwards.
    """
    checks = Dependant(call=_accept, path=dependant.path, dependencies=list(_guard_dependants(dependant)))
    check = _in_own_stack(get_request_handler(checks, dependency_overrides_provider=provider))

    async def checked(request: Request) -> Request:
        outer = request.scope["fastapi_function_astack"]
        await check(request)
        request.scope["fastapi_function_astack"] = outer
        return await read(request)

    return checked if checks.dependencies else read


async def _accept(**_values: object) -> Response:
    return Response()


def _guard_dependants(dependant: Dependant) -> Iterator[Dependant]:
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, Guard):
            yield dependency
        yield from _guard_dependants(dependency)


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
    """Add the operations and WebSockets of a router to the application as one flat list.

    `FastAPI.include_router` keeps routers nested, and each request searches all of them. A flat list saves a sixth of the time
    of a small request. A router with other routes, such as a mount, is included by `FastAPI.include_router`.
    """
    copies = [_copy(route, app, prefix) for route in router.routes if isinstance(route, Route | APIWebSocketRoute)]
    if len(copies) == len(router.routes):
        app.router.routes += copies
    else:
        app.include_router(router, prefix=prefix)


def _copy(route: Route | APIWebSocketRoute, app: FastAPI, prefix: str) -> BaseRoute:
    if isinstance(route, Route):
        return route.copy_to(app, prefix)
    options: dict[str, Any] = {"name": route.name, "dependencies": route.dependencies}
    return APIWebSocketRoute(prefix + route.path, route.endpoint, dependency_overrides_provider=app, **options)


def refuse_undeclared_parameters(scope: Scope) -> None:
    """Refuse query parameters of a handshake that its endpoint does not declare. HTTP operations do this for every request."""
    refuse_parameters(HTTPConnection(scope), query_parameters(scope["route"].dependant), accepts_others=False)
