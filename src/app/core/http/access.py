"""Who may call an operation: declared at each one, checked when the application starts.

An operation is `public`, or depends on whatever marks itself as a guard (auth's principal does). One that declares
neither must not start.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from app.core.errors import AppError

PUBLIC_KEY = "x-public"
public: dict[str, Any] = {PUBLIC_KEY: True}
"""`openapi_extra=public` on an operation: anybody may call it."""


class Guard(ABC):
    """Base of the dependencies that establish who is calling."""

    @abstractmethod
    def errors(self, scopes: Collection[str]) -> Iterable[type[AppError]]:
        """Name what a caller without the right credentials, or without these scopes, is answered."""


def guards(dependant: Dependant) -> Iterator[tuple[Guard, list[str]]]:
    """Yield the guards of an operation, each with the scopes it asks for."""
    if isinstance(dependant.call, Guard):
        yield dependant.call, [*(dependant.parent_oauth_scopes or ()), *(dependant.own_oauth_scopes or ())]
    for dependency in dependant.dependencies:
        yield from guards(dependency)


def undeclared_operations(app: FastAPI) -> Iterator[str]:
    """Name every operation that declares nothing, or contradicts itself."""
    for route in iter_route_contexts(app.routes):
        if not isinstance(route.original_route, APIRoute):
            continue
        extra: dict[str, Any] | None = route.openapi_extra
        is_public = bool(extra and extra.get(PUBLIC_KEY))
        if is_public == any(guards(route.dependant)):
            yield f"{' '.join(sorted(route.methods or set()))} {route.path}"


def refuse_undeclared(app: FastAPI) -> None:
    """Stop an application in which an operation does not say who may call it."""
    undeclared = list(undeclared_operations(app))
    if undeclared:
        message = f"these operations must declare who may call them (openapi_extra=public, or a principal): {', '.join(undeclared)}"
        raise RuntimeError(message)
