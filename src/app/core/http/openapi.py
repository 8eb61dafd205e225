"""The OpenAPI document, and the `/docs` page. All assets of the page come from this server, none from a CDN."""

import importlib.resources
import json
from functools import cache
from html import escape
from typing import Any, override

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from app.core.errors import NotFoundError
from app.core.http.access import PUBLIC_KEY, declare_public
from app.core.http.problems import Problem, root_path
from app.core.http.requests.bodies import MULTIPART
from app.core.schemas.fields import remove_null

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_CACHE = {"Cache-Control": "public, max-age=86400"}
# Swagger UI sets style attributes and loads its icons from data URLs. Scripts are allowed from this server only.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The links are relative, so that they also work below a path of the host.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" type="image/png" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """"use strict";
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
  layout: "BaseLayout",
  // Swagger UI sends an empty client id to the token endpoint, which refuses all client credentials.
  requestInterceptor: (request) => {
    if (request.headers.Authorization?.startsWith("Basic ")) delete request.headers.Authorization;
    return request;
  },
});
"""


class DocumentedAPI(FastAPI):
    """A FastAPI application whose OpenAPI document describes errors as problem documents.

    FastAPI generates the document, and generates it again when routes are added. This class only corrects it.
    """

    _corrected: dict[str, Any] | None = None

    @override
    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        if schema is not self._corrected:
            schemas: dict[str, Any] = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas |= _component(Problem)
            for operations in schema["paths"].values():
                for operation in operations.values():
                    _correct_operation(operation)
                    _mark_files(operation, schemas)
            self._corrected = schema
        return schema


def _correct_operation(operation: dict[str, Any]) -> None:
    """Correct what FastAPI generates: parameters are never null, a conditional read may get 304, and `x-public` is internal."""
    operation.pop(PUBLIC_KEY, None)
    for parameter in operation.get("parameters", ()):
        if "schema" in parameter:
            remove_null(parameter["schema"])
            _name_members(parameter["schema"])
        if parameter.get("name") == "If-None-Match":
            operation["responses"]["304"] = {"description": "The client's copy is current."}


def _mark_files(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Add `format: binary` to the files of a form. Generators know it from OpenAPI 3.0, and take a file without it for text."""
    form = operation.get("requestBody", {}).get("content", {}).get(MULTIPART, {}).get("schema", {})
    declared = schemas[form["$ref"].rpartition("/")[2]] if "$ref" in form else form
    for field in declared.get("properties", {}).values():
        for schema in (field, field.get("items", {}), *field.get("anyOf", ())):
            if "contentMediaType" in schema:
                schema["format"] = "binary"


def _name_members(schema: dict[str, Any]) -> None:
    """Add names for the members of a sort order. Generated clients cannot derive a name from a minus sign."""
    members = schema.get("enum", ())
    if any(isinstance(member, str) and member.startswith("-") for member in members):
        names = [member.removeprefix("-") + ("_descending" if member.startswith("-") else "") for member in members]
        schema["x-enum-varnames"] = [name.upper() for name in names]


def _component(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    return {**schema.pop("$defs", {}), model.__name__: schema}


def add_documentation(app: DocumentedAPI) -> None:

    async def openapi(request: Request) -> Response:
        document = _below(root_path(request.scope), app.openapi())
        return Response(json.dumps(document), media_type="application/json")

    async def page(_request: Request) -> Response:
        content = _PAGE.format(title=escape(app.title))
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": _POLICY})

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "start.js":
            return Response(_START, media_type="text/javascript", headers=_CACHE)
        if name not in _ASSETS:
            raise NotFoundError
        return Response(_asset(name), media_type=_ASSETS[name], headers=_CACHE)

    for path, endpoint in {"/openapi.json": openapi, "/docs": page, "/docs/{name}": asset}.items():
        app.add_route(path, declare_public(endpoint), include_in_schema=False)


def _below(root: str, document: dict[str, Any]) -> dict[str, Any]:
    """Return the document for clients that reach the application below a root path."""
    if not root:
        return document
    components = document["components"]
    schemes = {name: _scheme_below(root, scheme) for name, scheme in components.get("securitySchemes", {}).items()}
    servers = [{"url": root}, *document.get("servers", ())]
    return {**document, "servers": servers, "components": {**components, "securitySchemes": schemes}}


def _scheme_below(root: str, scheme: dict[str, Any]) -> dict[str, Any]:
    """Put the root path in front of the paths of OAuth. Clients resolve them against the host."""
    flows = {
        kind: {
            name: root + value if name.endswith("Url") and value.startswith("/") else value
            for name, value in flow.items()
        }
        for kind, flow in scheme.get("flows", {}).items()
    }
    return {**scheme, "flows": flows} if flows else scheme


@cache
def _asset(name: str) -> bytes:
    # Only the static files of the package are used. Its code is never imported.
    return (importlib.resources.files("fastapi_offline") / "static" / name).read_bytes()
