"""Access to operations: each one declares who may call it, and the application checks that at startup.

An operation is `public`, or it depends on a `Guard` (the principal in `auth` is one). The application refuses to start if an
operation declares neither, or both.
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
"""Write `openapi_extra=public` at an operation that needs no authentication."""


class Guard(ABC):
    """Base class of dependencies that authenticate the caller."""

    @abstractmethod
    def errors(self, scopes: Collection[str]) -> Iterable[type[AppError]]:
        """Return the errors for a caller without valid credentials, or without these scopes."""


def guards(dependant: Dependant) -> Iterator[tuple[Guard, list[str]]]:
    """Yield the guards of an operation, each with the scopes that it requires."""
    if isinstance(dependant.call, Guard):
        yield dependant.call, [*(dependant.parent_oauth_scopes or ()), *(dependant.own_oauth_scopes or ())]
    for dependency in dependant.dependencies:
        yield from guards(dependency)


def undeclared_operations(app: FastAPI) -> Iterator[str]:
    """Yield every operation that is neither public nor guarded, or that is both."""
    for route in iter_route_contexts(app.routes):
        if not isinstance(route.original_route, APIRoute):
            continue
        extra: dict[str, Any] | None = route.openapi_extra
        is_public = bool(extra and extra.get(PUBLIC_KEY))
        if is_public == any(guards(route.dependant)):
            yield f"{' '.join(sorted(route.methods or set()))} {route.path}"


def refuse_undeclared(app: FastAPI) -> None:
    """Raise an error if an operation does not declare who may call it."""
    undeclared = list(undeclared_operations(app))
    if undeclared:
        names = ", ".join(undeclared)
        message = (
            f"these operations must declare who may call them: {names}. Add either openapi_extra=public or a principal."
        )
        raise RuntimeError(message)
