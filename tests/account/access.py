from collections.abc import Mapping

from tests.access import NEW_PASSWORD, Access, authenticated, public, scoped
from tests.factories import PASSWORD

ACCESS: Mapping[str, Access] = {
    "POST /api/v1/auth/password/forgot": public(json={"email": "new@example.com"}),
    "POST /api/v1/auth/password/reset": public(
        json={"token": "nobody's", "new_password": NEW_PASSWORD}, is_known=False
    ),
    **{f"GET /account/{name}": public(statements=0) for name in ("page.js", "page.css", "set-password")},
    "PUT /api/v1/users/me/password": authenticated(json={"current_password": PASSWORD, "new_password": NEW_PASSWORD}),
    "POST /api/v1/users/{user_id}/password-reset": scoped("users:write"),
}
