from collections.abc import Mapping

from tests.access import NEW_PASSWORD, Access, public

ACCESS: Mapping[str, Access] = {
    "POST /api/v1/auth/register": public(json={"email": "new@example.com", "password": NEW_PASSWORD}),
    "POST /api/v1/auth/verify-email": public(json={"token": "nobody's"}, is_known=False),
    "POST /api/v1/auth/verify-email/resend": public(json={"email": "new@example.com"}),
    "GET /account/verify-email": public(statements=0),
}
