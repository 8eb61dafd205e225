"""Checks each response in the tests against the OpenAPI document: its status, and the code of a problem, must be declared."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from httpx2 import Response

from app.core.http.openapi import DocumentedAPI
from app.core.http.problems import MEDIA_TYPE

# The middleware sends these before it knows the operation, or while the operation runs.
_EARLY = frozenset({"secret_in_url", "payload_too_large", "shutting_down"})


class Declarations:
    """The declared responses of the operations of an application."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def check(self, response: Response) -> None:
        """Fail the test if the operation does not declare the status or the code of the response."""
        if (operation := self._operation(response)) is None:
            return
        await response.aread()
        is_problem = response.headers.get("content-type") == MEDIA_TYPE
        code = response.json()["code"] if is_problem else None
        if code in _EARLY:
            return
        where = f"{response.request.method} {response.request.url.path}"
        declared = operation["responses"].get(str(response.status_code))
        assert declared is not None, f"{where} returned {response.status_code} ({code}): declare it in its `responses`"
        codes = declared.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {code: None})
        assert code in codes, f"{where} returned {response.status_code} with {code}, but declares only {list(codes)}"

    def _operation(self, response: Response) -> dict[str, Any] | None:
        method, path = response.request.method, response.request.url.path
        method = "GET" if method == "HEAD" else method
        # The middleware refuses paths with an encoded slash, a final newline or NUL. They reach no operation.
        if "\0" in path or path.endswith("\n") or b"%2f" in response.request.url.raw_path.partition(b"?")[0].lower():
            return None
        for route in iter_route_contexts(self._app.routes):
            is_operation = isinstance(route.original_route, APIRoute) and method in (route.methods or ())
            if is_operation and route.path_regex.match(path):
                return _operations(route).get(method.lower())
        return None


# By the id of the route and its path. The routes are kept, so that their ids stay unique.
_DOCUMENTED: dict[tuple[int, str | None], tuple[RouteContext, dict[str, Any]]] = {}


def _operations(route: RouteContext) -> dict[str, Any]:
    """Return what the document says about one path. The whole document takes 0.1 s, and many tests create an application."""
    key = id(route.original_route), route.path_format
    if key not in _DOCUMENTED:
        app = DocumentedAPI(title="One path", openapi_url=None)
        app.router.routes.append(route)  # type: ignore[arg-type]  # FastAPI documents it like a route.
        _DOCUMENTED[key] = route, app.openapi()["paths"].get(route.path_format, {})
    return _DOCUMENTED[key][1]
