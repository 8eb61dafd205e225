from collections.abc import Mapping

from tests.access import Access, authenticated, scoped

ACCESS: Mapping[str, Access] = {
    "GET /api/v1/users/me": authenticated(),
    "PATCH /api/v1/users/me": authenticated(json={"full_name": "Ada"}),
    "DELETE /api/v1/users/me": authenticated(),
    "GET /api/v1/users": scoped("users:read"),
    "POST /api/v1/users": scoped("users:write", json={"email": "new@example.com"}),
    "GET /api/v1/users/{user_id}": scoped("users:read"),
    "PATCH /api/v1/users/{user_id}": scoped("users:write", json={"full_name": "Ada"}),
    "DELETE /api/v1/users/{user_id}": scoped("users:write"),
}
