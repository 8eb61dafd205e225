from collections.abc import Mapping

from tests.access import Access, public

ACCESS: Mapping[str, Access] = {
    "GET /livez": public(),
    "GET /readyz": public(),
}
