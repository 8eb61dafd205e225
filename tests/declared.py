"""Compares every answer that a test gets with the OpenAPI document: the status is declared, and so is the code of a problem."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from httpx2 import Response

from app.core.http.problems import MEDIA_TYPE

# The middleware answers these before it knows the operation, or while it runs.
_EARLY = frozenset({"secret_in_url", "payload_too_large", "shutting_down"})


class Declarations:
    """What the operations of an application declare to answer."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def check(self, response: Response) -> None:
        """Fail the test whose request was answered with a status or a code that its operation does not declare."""
        if (operation := self._operation(response)) is None:
            return
        await response.aread()
        is_problem = response.headers.get("content-type") == MEDIA_TYPE
        code = response.json()["code"] if is_problem else None
        if code in _EARLY:
            return
        where = f"{response.request.method} {response.request.url.path}"
        declared = operation["responses"].get(str(response.status_code))
        assert declared is not None, f"{where} answers {response.status_code} ({code}), which it does not declare"
        codes = declared.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {code: None})
        assert code in codes, f"{where} answers {response.status_code} with {code}, and declares only {list(codes)}"

    def _operation(self, response: Response) -> dict[str, Any] | None:
        method, path = response.request.method, response.request.url.path
        method = "GET" if method == "HEAD" else method
        # The middleware answers an address with an encoded slash, final newline or NUL; it reaches no operation.
        if "\0" in path or path.endswith("\n") or b"%2f" in response.request.url.raw_path.partition(b"?")[0].lower():
            return None
        for route in iter_route_contexts(self._app.routes):
            is_operation = isinstance(route.original_route, APIRoute) and method in (route.methods or ())
            if is_operation and route.path_regex.match(path):
                operations: dict[str, Any] = self._app.openapi()["paths"].get(route.path_format, {})
                return operations.get(method.lower())
        return None
