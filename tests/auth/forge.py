"""Makes tokens by hand, without the library under test: as an attacker would, or with our own key."""

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

type Json = dict[str, Any]

MISSING = object()
"""An override of this value takes the member out."""


def encode(part: bytes | Mapping[str, Any]) -> str:
    """Write one part of a token: bytes as they are, anything else as JSON."""
    raw = part if isinstance(part, bytes) else json.dumps(part, separators=(",", ":")).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def read_part(token: str, index: int) -> Json:
    """Read the header (0) or the claims (1) of a token."""
    value: Json = json.loads(decode(token.split(".")[index]))
    return value


def private_key(jwk: Json) -> EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(decode(jwk["d"])), ec.SECP256R1())


def signing_jwk(key_set: str) -> Json:
    """Take the (only) signing key out of a private key set."""
    (found,) = (key for key in json.loads(key_set)["keys"] if key["kty"] == "EC")
    signing: Json = found
    return signing


def sign(signing_input: str, jwk: Json) -> str:
    """Sign with ES256, by hand: `r` and `s` one after the other, 32 bytes each (RFC 7518, 3.4)."""
    r, s = decode_dss_signature(private_key(jwk).sign(signing_input.encode(), ec.ECDSA(SHA256())))
    return f"{signing_input}.{encode(r.to_bytes(32) + s.to_bytes(32))}"


@dataclass(frozen=True)
class Forge:
    """Makes variations of one valid token, `token`, that was signed with `jwk`."""

    token: str
    jwk: Json

    @property
    def header(self) -> Json:
        return read_part(self.token, 0)

    @property
    def claims(self) -> Json:
        return read_part(self.token, 1)

    def with_claims(self, **overrides: Any) -> str:
        """Change claims, and sign again with the real key."""
        return self.signed(self.header, _changed(self.claims, overrides))

    def with_header(self, **overrides: Any) -> str:
        """Change header members, and sign again with the real key."""
        return self.signed(_changed(self.header, overrides), self.claims)

    def signed(self, header: bytes | Json, claims: bytes | Json) -> str:
        return sign(f"{encode(header)}.{encode(claims)}", self.jwk)

    def raw_claims(self, write: Callable[[str], str]) -> str:
        """Change the text of the claims, for what JSON libraries do not write; signed with the real key."""
        return self.signed(self.header, write(json.dumps(self.claims)).encode())

    def mac(self, secret: bytes) -> str:
        """Sign with HS256 and this secret (RFC 8725, 2.1)."""
        signing_input = f"{encode(self.header | {'alg': 'HS256'})}.{encode(self.claims)}"
        return f"{signing_input}.{encode(hmac.digest(secret, signing_input.encode(), hashlib.sha256))}"

    def unsigned(self, alg: str, signature: str = "") -> str:
        return f"{encode(self.header | {'alg': alg})}.{encode(self.claims)}.{signature}"

    def public(self, encoding: Encoding, form: PublicFormat) -> bytes:
        """Return the public key, which attackers know too."""
        return private_key(self.jwk).public_key().public_bytes(encoding, form)

    @property
    def public_jwk(self) -> Json:
        return {name: self.jwk[name] for name in ("kty", "crv", "x", "y")}


def _changed(members: Json, overrides: Json) -> Json:
    return {name: value for name, value in (members | overrides).items() if value is not MISSING}
