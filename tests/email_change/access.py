from collections.abc import Mapping

from tests.access import Access, authenticated, public
from tests.factories import PASSWORD

ACCESS: Mapping[str, Access] = {
    "POST /api/v1/auth/email/confirm": public(json={"token": "nobody's"}, is_known=False, statements=1),
    "POST /api/v1/users/me/email": authenticated(
        json={"new_email": "moved@example.com", "password": PASSWORD}, statements=13
    ),
    "GET /account/confirm-email": public(statements=0),
}
