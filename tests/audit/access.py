from collections.abc import Mapping

from tests.access import Access, scoped

ACCESS: Mapping[str, Access] = {
    "GET /api/v1/audit-events": scoped("audit:read"),
}
