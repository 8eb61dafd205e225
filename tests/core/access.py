from collections.abc import Mapping

from tests.access import Access, public

ACCESS: Mapping[str, Access] = {
    "GET /problems/{name}": public(path={"name": "not-found"}),
    "GET /openapi.json": public(),
    "GET /docs": public(),
    "GET /docs/{name}": public(path={"name": "swagger-ui.css"}),
}
