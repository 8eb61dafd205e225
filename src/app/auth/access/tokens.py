"""Access tokens: compact JWS in the profile of RFC 9068, signed with ES256 or EdDSA.

joserfc verifies signatures but not claims, so this module checks every claim. No other module uses joserfc for tokens.
"""

import json
import re
import time
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Annotated, Any, override
from uuid import UUID

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwa import JWSAlgModel
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict
from uuid_utils.compat import uuid7

from app.auth.errors import InvalidTokenError
from app.core import base64url, strict_json
from app.core.schemas.fields import QueryIdentifier
from app.core.security.keys import KeyRing

TYPE = "at+jwt"
# Both name the same media type (RFC 9068, 4; RFC 7515, 4.1.9). Media types are not case-sensitive.
_TYPES = {TYPE, f"application/{TYPE}"}
CLIENT_ID = "first-party"
MAX_LIFETIME = 15 * 60
_MAX_LENGTH = 4096
_MAX_HEADER_LENGTH = 512
_FORMAT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_HEADER_MEMBERS = {"alg", "kid", "typ"}
_EPOCH = 1_577_836_800  # 2020-01-01. An earlier date is a mistake or an attack.
_SKEW = 30
_MAX_VERIFIED = 10_000


class _Registry(jws.JWSRegistry):
    """Allows only the algorithms of our keys, without the warning that RFC 9864 renamed EdDSA: verifiers know the old name."""

    _ours = {name: jws.JWSRegistry.algorithms[name] for name in ("ES256", "EdDSA")}  # noqa: RUF012  # As in the parent.

    @override
    def get_alg(self, name: str) -> JWSAlgModel:
        return self._ours[name]


_REGISTRY = _Registry()


# `Strict` refuses a bool, which is a kind of integer in Python.
_Integer = Annotated[int, Strict()]
_Instant = Annotated[_Integer, Field(ge=_EPOCH)]


class AccessClaims(BaseModel):
    """The claims of an access token, and the id of its key. The values may still be wrong for this application and this time.

    Claims that this release does not know are ignored (RFC 7519, 4): during a rolling deploy the next release may add some.
    """

    model_config = ConfigDict(frozen=True)

    iss: str
    aud: str | list[Any]
    client_id: str
    jti: str
    user_id: QueryIdentifier = Field(validation_alias="sub")
    session_id: QueryIdentifier = Field(validation_alias="sid")
    version: _Integer = Field(validation_alias="ver")
    scopes: Annotated[frozenset[str], BeforeValidator(str.split)] = Field(validation_alias="scope")
    auth_time: _Instant
    # Tokens of the release before have neither claim. Their sessions began with a password.
    acr: str = "aal1"
    amr: tuple[str, ...] = ("pwd",)
    issued_at: _Instant = Field(validation_alias="iat")
    expires_at: _Instant = Field(validation_alias="exp")
    # This application does not write `nbf`, but a token that is not valid yet must not be used (RFC 7519, 4.1.5).
    not_before: _Instant = Field(default=_EPOCH, validation_alias="nbf")
    kid: str


class AccessTokens:
    """Issues and reads access tokens for one issuer and audience."""

    def __init__(self, ring: KeyRing, *, issuer: str, audience: str, lifetime: int) -> None:
        self._ring = ring
        self._issuer = issuer
        self._audience = audience
        self.lifetime = lifetime
        # Verifying a signature takes over 100 µs, and clients send the same token many times.
        self._verified: dict[bytes, AccessClaims] = {}

    def issue(
        self,
        *,
        user_id: UUID,
        session_id: UUID,
        version: int,
        scopes: Iterable[str],
        auth_time: int,
        acr: str,
        amr: Sequence[str],
        session_ends: float,
    ) -> tuple[str, int]:
        """Sign a token for one login session. Return it with its lifetime in seconds, which ends with the session at the latest."""
        now = int(time.time())
        lifetime = max(1, min(self.lifetime, int(session_ends) - now))
        key = self._ring.signing[self._ring.active]
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": str(user_id),
            "iat": now,
            "exp": now + lifetime,
            "jti": uuid7().hex,
            "sid": str(session_id),
            "ver": version,
            "auth_time": auth_time,
            "acr": acr,
            "amr": list(amr),
            "scope": " ".join(sorted(scopes)),
            "client_id": CLIENT_ID,
        }
        header = {"alg": str(key.alg), "kid": self._ring.active, "typ": TYPE}
        payload = json.dumps(claims, separators=(",", ":"))
        return jws.serialize_compact(header, payload, key, registry=_REGISTRY), lifetime

    def read(self, token: str) -> AccessClaims:
        """Verify a token. Raises the same `InvalidTokenError` for every fault."""
        # The cache is keyed by a digest, so it holds no token. `surrogatepass` keeps invalid text from raising here.
        digest = sha256(token[:_MAX_LENGTH].encode("utf-8", "surrogatepass")).digest()
        known = self._verified.get(digest)
        if known is not None and self._is_still_valid(known) and len(token) <= _MAX_LENGTH:
            return known
        try:
            claims = self._read(token)
        except (ValueError, KeyError, TypeError, JoseError, RecursionError) as error:
            raise InvalidTokenError from error
        # The oldest entry is removed first; it also expires first.
        if len(self._verified) >= _MAX_VERIFIED:
            self._verified.pop(next(iter(self._verified)))
        self._verified[digest] = claims
        return claims

    def _is_still_valid(self, known: AccessClaims) -> bool:
        # The key may have been removed since the token was verified.
        return known.expires_at > time.time() and self._ring.verification_key(known.kid) is not None

    def _read(self, token: str) -> AccessClaims:
        # Cheap checks come first: text that cannot be one of our tokens is not parsed and reaches no key.
        if len(token) > _MAX_LENGTH or _FORMAT.fullmatch(token) is None:
            raise ValueError
        head, _, rest = token.partition(".")
        header = _parse(head) if len(head) <= _MAX_HEADER_LENGTH else {}
        if header.keys() != _HEADER_MEMBERS or str(header["typ"]).lower() not in _TYPES:
            raise ValueError
        # `str()` makes a value of another type fail: its text is neither a known type nor the id of a key.
        key = self._ring.verification_key(str(header["kid"]))
        if key is None or header["alg"] != key.alg:
            raise ValueError
        jws.deserialize_compact(token, key, registry=_REGISTRY)
        claims = AccessClaims.model_validate(_parse(rest.partition(".")[0]) | {"kid": header["kid"]})
        self._check(claims, time.time())
        return claims

    def _check(self, claims: AccessClaims, now: float) -> None:
        audiences = claims.aud if isinstance(claims.aud, list) else [claims.aud]
        if claims.iss != self._issuer or self._audience not in audiences or claims.client_id != CLIENT_ID:
            raise ValueError
        if claims.expires_at <= now or not 0 < claims.expires_at - claims.issued_at <= MAX_LIFETIME:
            raise ValueError
        if max(claims.issued_at, claims.auth_time, claims.not_before) > now + _SKEW:
            raise ValueError


def _parse(part: str) -> dict[str, Any]:
    """Decode one part of a token: strict base64url without padding, and JSON without duplicate members."""
    value = strict_json.loads(base64url.decode(part).decode("utf-8"))
    if not isinstance(value, dict):
        raise TypeError
    return value
