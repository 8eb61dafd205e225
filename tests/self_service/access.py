from collections.abc import Mapping

from tests.access import Access, public

ACCESS: Mapping[str, Access] = {
    "GET /account/login": public(statements=0),
    "GET /account/forgot-password": public(statements=0),
    "GET /account/security": public(statements=0),
    "GET /account/assets/{name}": public(path={"name": "api.js"}, statements=0),
}
