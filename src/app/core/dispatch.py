"""The way from the middleware to an operation. The framework asks the routers for it one after the other, and does so twice."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, override

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.convertors import Convertor
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.routing import Route


class DirectAPI(FastAPI):
    """FastAPI without those of its layers that find nothing to do below `RequestMiddleware`."""

    @override
    def build_middleware_stack(self) -> ASGIApp:
        stack: ASGIApp = _Dispatcher(self)
        for layer, arguments, options in reversed(self.user_middleware):
            stack = layer(stack, *arguments, **options)
        return stack


@dataclass(frozen=True, slots=True)
class _Operation:
    path: str
    methods: Collection[str]
    match: Callable[[str], re.Match[str] | None]
    converters: Mapping[str, Convertor[Any]]
    # What the framework would note in the scope.
    facts: Mapping[str, Any]
    # None of what is not a `Route`, and needs what the framework prepares.
    call: ASGIApp | None


class _Dispatcher:
    """Calls the operation that a request is for. What is for none goes the framework's way, and so does what is traced."""

    def __init__(self, api: FastAPI) -> None:
        self._framework = ExceptionMiddleware(AsyncExitStackMiddleware(api.router), handlers=api.exception_handlers)
        self._handlers = (api.exception_handlers, dict[int, Any]())
        self._operations = [_operation(api, route) for route in iter_route_contexts(api.routes) if route.methods]
        # Where one with parameters that was declared before takes the address, it is that one's.
        self._by_address = {
            (method, one.path): one
            for one in self._operations
            for method in one.methods
            if not one.converters and self._search(method, one.path) == (one, {})
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Only the framework can name the span of a request.
        if scope["type"] != "http" or scope.get("fastapi.telemetry"):
            await self._framework(scope, receive, send)
            return
        operation, parameters = self._find(scope["method"], scope["path"])
        if operation is None or operation.call is None:
            await self._framework(scope, receive, send)
            return
        scope.update(operation.facts)
        scope["path_params"] = parameters
        scope["starlette.exception_handlers"] = self._handlers
        await operation.call(scope, receive, send)

    def _find(self, method: str, path: str) -> tuple[_Operation | None, dict[str, Any]]:
        operation = self._by_address.get((method, path))
        return (operation, {}) if operation else self._search(method, path)

    def _search(self, method: str, path: str) -> tuple[_Operation | None, dict[str, Any]]:
        for one in self._operations:
            if (match := one.match(path)) and method in one.methods:
                return one, {name: one.converters[name].convert(text) for name, text in match.groupdict().items()}
        return None, {}


def _operation(api: FastAPI, route: RouteContext) -> _Operation:
    facts = {
        "router": api.router,
        "route": route.original_route,
        "endpoint": route.endpoint,
        # Read by the middleware: of an included route only this knows the whole template.
        "fastapi": {"effective_route_context": route},
    }
    return _Operation(
        path=route.path or "",
        methods=route.methods or (),
        match=route.path_regex.match,
        converters=route.param_convertors,
        facts=facts,
        call=route.app if isinstance(route.original_route, Route) else None,
    )
