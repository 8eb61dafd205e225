from collections.abc import Mapping

from tests.access import TARGET, UNKNOWN_ID, Access, authenticated, public, scoped
from tests.factories import PASSWORD

ACCESS: Mapping[str, Access] = {
    "POST /api/v1/auth/token": public(form={"grant_type": "password", "username": TARGET, "password": PASSWORD}),
    "POST /api/v1/auth/revoke": public(form={"token": "nobody's"}),
    "POST /api/v1/auth/reauthenticate": authenticated(json={"password": PASSWORD}),
    "POST /api/v1/auth/socket-tickets": authenticated(),
    "GET /api/v1/users/me/sessions": authenticated(),
    "DELETE /api/v1/users/me/sessions": authenticated(),
    "DELETE /api/v1/users/me/sessions/{session_id}": authenticated(path={"session_id": UNKNOWN_ID}, is_found=False),
    "DELETE /api/v1/users/{user_id}/sessions": scoped("users:write"),
    "GET /api/v1/users/me/export": authenticated(),
    "GET /.well-known/jwks.json": public(),
}
