"""The OpenAPI document, and a page that shows it with assets of its own: nothing is loaded from anywhere else."""

import importlib.resources
import json
from functools import cache
from typing import Any, override

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from app.core.access import PUBLIC_KEY
from app.core.errors import NotFoundError
from app.core.problems import Problem

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_CACHE = {"Cache-Control": "public, max-age=86400"}
# Swagger UI sets style attributes and draws its icons from data URLs; scripts come from here alone.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/png" href="/docs/favicon.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """"use strict";
window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
  layout: "BaseLayout",
});
"""


class DocumentedAPI(FastAPI):
    """FastAPI whose OpenAPI document has problem documents as its errors."""

    @override
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema = get_openapi(
                title=self.title,
                version=self.version,
                summary=self.summary,
                description=self.description,
                routes=self.routes,
                tags=self.openapi_tags,
            )
            schemas: dict[str, Any] = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas |= _component(Problem)
            for operations in schema["paths"].values():
                for operation in operations.values():
                    operation.pop(PUBLIC_KEY, None)
            self.openapi_schema = schema
        return self.openapi_schema


def _component(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    return {**schema.pop("$defs", {}), model.__name__: schema}


def add_documentation(app: DocumentedAPI) -> None:
    """Serve `/openapi.json` and `/docs`."""

    async def openapi(_request: Request) -> Response:
        return Response(json.dumps(app.openapi()), media_type="application/json")

    async def page(_request: Request) -> Response:
        content = _PAGE.format(title=app.title)
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": _POLICY})

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "start.js":
            return Response(_START, media_type="text/javascript", headers=_CACHE)
        if name not in _ASSETS:
            raise NotFoundError
        return Response(_asset(name), media_type=_ASSETS[name], headers=_CACHE)

    app.add_route("/openapi.json", openapi, include_in_schema=False)
    app.add_route("/docs", page, include_in_schema=False)
    app.add_route("/docs/{name}", asset, include_in_schema=False)


@cache
def _asset(name: str) -> bytes:
    # The package is wanted for the files it ships; its code is not imported.
    return (importlib.resources.files("fastapi_offline") / "static" / name).read_bytes()
