"""A faster way to find the operation of a request. The framework's router stays in charge of everything else.

The framework asks every router and route in turn, and does so twice. This looks the address up. It answers only where the
framework would certainly choose the same operation; any other request goes to the framework's router.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, override

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette._utils import get_route_path
from starlette.convertors import Convertor
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

# Routes that match by their path pattern and their methods, and by nothing else.
_KNOWN_MATCHES = (APIRoute.matches, Route.matches, Mount.matches)


class DirectAPI(FastAPI):
    """FastAPI that looks operations up instead of searching for them. The middleware stack is the framework's own."""

    @override
    def build_middleware_stack(self) -> ASGIApp:
        self.router.middleware_stack = _Dispatcher(self.router, self.router.middleware_stack)
        return super().build_middleware_stack()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A route in the order of declaration. Without `call`, the framework serves the requests that it matches."""

    path: str
    methods: Collection[str] | None
    match: Callable[[str], re.Match[str] | None]
    converters: Mapping[str, Convertor[Any]]
    context: RouteContext
    call: ASGIApp | None

    def takes(self, method: str) -> bool:
        return self.methods is None or method in self.methods


class _Dispatcher:
    """Calls the operation of a request directly, or hands the request to the framework's router."""

    def __init__(self, router: APIRouter, framework: ASGIApp) -> None:
        self._router = router
        self._framework = framework
        self._read_routes()

    def _read_routes(self) -> None:
        self._known = [(router, [*router.routes]) for router in _routers(self._router)]
        self._candidates = list(_candidates(self._router))
        # An earlier route with parameters may match the same address. Then that one serves it.
        self._by_address = {
            (method, one.path): one
            for one in self._candidates
            for method in one.methods or ()
            if not one.converters and self._search(method, one.path) == (one, {})
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Only the framework's router names the span of a traced request, and passes on the form limits of an outer application.
        if scope["type"] != "http" or scope.get("fastapi.telemetry") or "fastapi" in scope:
            await self._framework(scope, receive, send)
            return
        if self._is_outdated():
            self._read_routes()
        operation, parameters = self._find(scope["method"], get_route_path(scope))
        if operation is None or operation.call is None:
            await self._framework(scope, receive, send)
            return
        scope.setdefault("router", self._router)
        scope["route"] = operation.context.original_route
        scope["endpoint"] = operation.context.endpoint
        scope["path_params"] = {**scope.get("path_params", {}), **parameters}
        # The middleware reads it: of an included route, only this has the complete template.
        scope["fastapi"] = {"effective_route_context": operation.context}
        await operation.call(scope, receive, send)

    def _is_outdated(self) -> bool:
        # The framework serves a route from the moment it is added. Equal lists of the same objects compare in nanoseconds.
        for router, routes in self._known:  # noqa: SIM110  # A generator costs twice as much.
            if router.routes != routes:
                return True
        return False

    def _find(self, method: str, path: str) -> tuple[_Candidate | None, dict[str, Any]]:
        operation = self._by_address.get((method, path))
        return (operation, {}) if operation else self._search(method, path)

    def _search(self, method: str, path: str) -> tuple[_Candidate | None, dict[str, Any]]:
        for one in self._candidates:
            if (match := one.match(path)) and one.takes(method):
                return one, {name: one.converters[name].convert(text) for name, text in match.groupdict().items()}
        return None, {}


def _routers(router: APIRouter) -> Iterator[APIRouter]:
    yield router
    for route in router.routes:
        if isinstance(included := getattr(route, "original_router", None), APIRouter):
            yield from _routers(included)


def _is_plain(router: APIRouter) -> bool:
    """Tell whether the routers only route: no methods of their own, and no form limits, which only they pass on."""
    routers = list(_routers(router))
    contexts = [
        context for one in routers for route in one.routes if (context := getattr(route, "include_context", None))
    ]
    return (
        not router.form_limits
        and not any(context.form_limits for context in contexts)
        and all(
            getattr(type(one), name) is getattr(APIRouter, name)
            for one in routers
            for name in ("app", "matches", "handle")
        )
    )


def _candidates(router: APIRouter) -> Iterator[_Candidate]:
    """Yield the routes up to the first one whose way to match is unknown, such as a host or a route class of one's own."""
    for context in iter_route_contexts(router.routes if _is_plain(router) else ()):
        route = context.original_route
        if isinstance(route, WebSocketRoute):
            continue
        if type(route).matches not in _KNOWN_MATCHES:
            return
        is_operation = type(route).handle is APIRoute.handle
        yield _Candidate(
            path=context.path or "",
            methods=context.methods,
            match=context.path_regex.match,
            converters=context.param_convertors,
            context=context,
            call=context.app if is_operation else None,
        )
