"""Access to operations: each one declares who may call it, and the application checks that at startup.

An operation is `public`, or it depends on a `Guard` (the principal in `auth` is one). An optional guard accepts anonymous callers
too. The application refuses to start if an operation declares none of these, or more than one. A WebSocket needs a guard. Mounts and
plain routes of Starlette have no guards: they are declared public, and check their callers themselves if they need to.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from typing import Any, ClassVar

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, APIWebSocketRoute, RouteContext, iter_route_contexts
from starlette.routing import BaseRoute, WebSocketRoute

from app.core.errors import AppError

PUBLIC_KEY = "x-public"
public: dict[str, Any] = {PUBLIC_KEY: True}
"""Write `openapi_extra=public` at an operation that needs no authentication."""

_DECLARED_PUBLIC = "declared_public"


class Guard(ABC):
    """Base class of dependencies that authenticate the caller."""

    is_optional: ClassVar[bool] = False
    """Whether the guard accepts a request without credentials. It must refuse invalid ones, and it has no scopes."""

    @abstractmethod
    def errors(self, scopes: Collection[str]) -> Iterable[type[AppError]]:
        """Return the errors for a caller without valid credentials, or without these scopes."""


def guards(dependant: Dependant) -> Iterator[tuple[Guard, list[str]]]:
    """Yield the guards of an operation, each with the scopes that it requires."""
    if isinstance(dependant.call, Guard):
        yield dependant.call, [*(dependant.parent_oauth_scopes or ()), *(dependant.own_oauth_scopes or ())]
    for dependency in dependant.dependencies:
        yield from guards(dependency)


def call_guards_first(app: FastAPI) -> None:
    """Sort the dependencies of each operation: those with a guard run first, so that the others run only for callers with access.

    FastAPI calls dependencies in the order of the parameters. A dependency in front of the guard could reveal what exists, or open a
    resource for an anonymous caller.
    """
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute | APIWebSocketRoute):
            _sort(route.dependant)


def _sort(dependant: Dependant) -> None:
    # Guards themselves stand before dependencies on one: the endpoint's guard may need a scope that theirs does not.
    dependant.dependencies.sort(key=lambda one: (not isinstance(one.call, Guard), next(guards(one), None) is None))
    for dependency in dependant.dependencies:
        _sort(dependency)


def has_optional_caller(dependant: Dependant) -> bool:
    """Return whether the response depends on a login that is optional."""
    return any(guard.is_optional for guard, _ in guards(dependant))


def declare_public[Target](target: Target) -> Target:
    """Declare that anybody may call a plain route or a mount. The target is the endpoint, the mounted application or the route."""
    try:
        target.__dict__[_DECLARED_PUBLIC] = True
    except AttributeError as error:
        message = f"{type(target).__name__} has no attributes and cannot be declared public: declare the route instead"
        raise TypeError(message) from error
    return target


def undeclared_operations(app: FastAPI) -> Iterator[str]:
    """Yield every operation that does not declare exactly one kind of caller, and every other route that is not declared public."""
    for route in iter_route_contexts(app.routes):
        if not isinstance(route.original_route, WebSocketRoute) and not _is_declared(route):
            kind = " ".join(sorted(route.methods or ())) or type(route.original_route).__name__
            yield f"{kind} {route.path or getattr(route.original_route, 'host', '')}"


def _is_declared(route: RouteContext) -> bool:
    if isinstance(route.original_route, APIRoute):
        return _has_one_kind_of_caller(route.openapi_extra, route.dependant)
    return _is_declared_public(route.original_route)


def _is_declared_public(route: BaseRoute) -> bool:
    parts = (route, getattr(route, "endpoint", None), getattr(route, "app", None))
    return any(_DECLARED_PUBLIC in getattr(part, "__dict__", {}) for part in parts)


def _has_one_kind_of_caller(extra: dict[str, Any] | None, dependant: Dependant) -> bool:
    found = list(guards(dependant))
    is_public = bool(extra and extra.get(PUBLIC_KEY))
    # With scopes, a logged-in caller could be refused what an anonymous one may see.
    has_useless_scopes = any(guard.is_optional and scopes for guard, scopes in found)
    return not has_useless_scopes and is_public + len({guard.is_optional for guard, _ in found}) == 1


def refuse_undeclared(app: FastAPI) -> None:
    """Raise an error if an operation does not declare who may call it."""
    undeclared = list(undeclared_operations(app))
    if undeclared:
        names = ", ".join(undeclared)
        message = (
            f"these operations must declare who may call them: {names}. Add only one of openapi_extra=public, a principal and an "
            "optional principal. An optional principal has no scopes: compare `principal.scopes` in the endpoint. "
            "Declare a mount with mount_public of app.core.http.mounts, and another route with declare_public of "
            "app.core.http.access: the application does not check who calls them."
        )
        raise RuntimeError(message)


def refuse_unusable_sockets(app: FastAPI) -> None:
    """Raise an error if a WebSocket has no caller, or a dependency that works with an HTTP request alone."""
    if faults := [fault for route in iter_route_contexts(app.routes) for fault in _faults(route)]:
        message = f'these WebSockets cannot work: {"; ".join(faults)}. See docs/recipes.md, "Open a WebSocket"'
        raise RuntimeError(message)


def _faults(route: RouteContext) -> Iterator[str]:
    if not isinstance(route.original_route, WebSocketRoute):
        return
    dependant = getattr(route, "dependant", None)
    callers = {guard.is_optional for guard, _ in guards(dependant)} if dependant else set()
    if callers != {False}:
        yield f"{route.path} has no caller: take a principal that uses up a ticket, such as SocketPrincipal"
    for name in _with_request(dependant) if dependant else ():
        yield f"{route.path} takes {name}, which needs an HTTP request: open sessions with DatabaseDep, one for each message"


def _with_request(dependant: Dependant) -> Iterator[str]:
    """Yield the dependencies that take an HTTP request. A WebSocket has none, and a session would hold a connection while it is open."""
    if dependant.request_param_name:
        yield getattr(dependant.call, "__name__", type(dependant.call).__name__)
    for dependency in dependant.dependencies:
        yield from _with_request(dependency)
