"""Sealing of the secrets of authenticator apps: the application must read them to check codes."""

from uuid import UUID

from app.core.security.keys import KeyRing
from app.core.security.resealing import SealedColumn
from app.core.security.sealing import Sealer
from app.factors.models import TotpSecret

_PURPOSE = "totp"
SEALED = (SealedColumn(TotpSecret.sealed, owner=TotpSecret.user_id, purpose=_PURPOSE),)


def seal(keys: KeyRing, user_id: UUID, secret: bytes) -> bytes:
    return Sealer(keys).seal(secret, purpose=_PURPOSE, owner=user_id)


def unseal(keys: KeyRing, user_id: UUID, sealed: bytes) -> bytes:
    """Return the secret. Raises `SealBrokenError` for a value of another account."""
    return Sealer(keys).unseal(sealed, purpose=_PURPOSE, owner=user_id)
