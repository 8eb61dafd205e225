from collections.abc import Mapping

from tests.access import Access, authenticated, public, scoped

_STALE = 401

ACCESS: Mapping[str, Access] = {
    "POST /api/v1/auth/mfa": public(json={"mfa_token": "nobody's", "code": "123456"}, is_known=False, statements=1),
    "GET /api/v1/users/me/mfa": authenticated(),
    "POST /api/v1/users/me/mfa/totp": authenticated(),
    "POST /api/v1/users/me/mfa/totp/confirm": authenticated(json={"code": "123456"}, is_found=False),
    # These need a second factor, which the callers of the access table have not given.
    "DELETE /api/v1/users/me/mfa/totp": authenticated(status=_STALE),
    "POST /api/v1/users/me/mfa/recovery-codes": authenticated(status=_STALE),
    "DELETE /api/v1/users/{user_id}/mfa": scoped("users:write", status=_STALE),
}
