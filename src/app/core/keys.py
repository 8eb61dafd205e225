"""The secrets that tokens are made with: signing keys for access tokens, peppers for everything opaque.

They come as one private JSON Web Key set (RFC 7517), from a file or the environment, never from the database. Each key
carries a `state`: `next` is published but not used, `active` signs, `retiring` still verifies.
"""

import hmac
import json
import os
from base64 import urlsafe_b64decode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey

from app.core.config import AuthSettings
from app.core.errors import ConfigurationError

type SigningKey = ECKey | OKPKey
type State = Literal["next", "active", "retiring"]

_STATES = frozenset({"next", "active", "retiring"})
_KINDS: dict[tuple[str, str, str], type[SigningKey]] = {
    ("EC", "P-256", "ES256"): ECKey,
    ("OKP", "Ed25519", "EdDSA"): OKPKey,
}
_MIN_PEPPER_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The signing keys by id, the id of the one that signs, and the peppers by id with the current one."""

    signing: dict[str, SigningKey] = field(repr=False)
    states: dict[str, State]
    active: str
    peppers: dict[int, bytes] = field(repr=False)
    active_pepper: int

    def verifying(self, kid: str) -> SigningKey | None:
        """Give the key that may verify a token of this id: a key that is only announced signs nothing yet."""
        return self.signing.get(kid) if self.states.get(kid) in {"active", "retiring"} else None

    def public_set(self) -> dict[str, list[dict[str, Any]]]:
        """Give the JSON Web Key set to publish: public members only."""
        return {"keys": [key.as_dict(private=False, use="sig", kid=kid) for kid, key in self.signing.items()]}

    def derive(self, purpose: str) -> bytes:
        """Derive a key for one purpose from the current pepper, so that no two purposes share one."""
        return hmac.digest(self.peppers[self.active_pepper], purpose.encode(), "sha256")


def generate_key_set(algorithm: Literal["ES256", "EdDSA"] = "ES256") -> str:
    """Make a new private key set, as JSON text: one active signing key and one pepper."""
    key = (
        ECKey.generate_key("P-256", private=True)
        if algorithm == "ES256"
        else OKPKey.generate_key("Ed25519", private=True)
    )
    signing = key.as_dict(private=True, use="sig", alg=algorithm, kid=key.thumbprint(), state="active")
    pepper = OctKey.generate_key(8 * _MIN_PEPPER_BYTES).as_dict(private=True, kid="1", state="active")
    return json.dumps({"keys": [signing, pepper]}, indent=2)


def load_key_ring(settings: AuthSettings) -> KeyRing:
    """Read the key set the settings point to; whatever is wrong with it is said without showing it."""
    if settings.signing_keys is not None:
        return parse_key_ring(settings.signing_keys.get_secret_value(), source="APP_AUTH__SIGNING_KEYS")
    if settings.signing_keys_file is None:
        message = "APP_AUTH__SIGNING_KEYS_FILE: is missing; make one with `app keys generate`"
        raise ConfigurationError(message)
    return parse_key_ring(_read(settings.signing_keys_file), source=str(settings.signing_keys_file))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not a text file"
        message = f"{path}: the signing keys cannot be read: {reason}"
        raise ConfigurationError(message) from None


def parse_key_ring(text: str, *, source: str) -> KeyRing:
    """Read a private key set from its JSON text."""
    try:
        keys = json.loads(text)["keys"]
        signing = [key for key in keys if key["kty"] != "oct"]
        peppers = [{**key, "kid": int(key["kid"])} for key in keys if key["kty"] == "oct"]
        ring = KeyRing(
            signing={key["kid"]: _import(key) for key in signing},
            states=_states(signing),
            active=_only_active(signing),
            peppers={key["kid"]: _pepper(key) for key in peppers},
            active_pepper=_only_active(peppers),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, JoseError):
        # The cause is not chained: its text may quote the file.
        message = f"{source}: this is not a private key set as `app keys generate` makes it"
        raise ConfigurationError(message) from None
    return ring


def _states(keys: list[dict[str, Any]]) -> dict[str, State]:
    states = {key["kid"]: key["state"] for key in keys}
    # A mistyped state would publish a key that then never verifies.
    if len(states) != len(keys) or not _STATES.issuperset(states.values()):
        raise ValueError
    return states


def _only_active(keys: list[dict[str, Any]]) -> Any:
    (active,) = [kid for kid, state in _states(keys).items() if state == "active"]
    return active


def _import(key: dict[str, Any]) -> SigningKey:
    # The combinations are spelled out: the library also takes a curve that the algorithm cannot sign with.
    kind = _KINDS[key["kty"], key["crv"], key["alg"]]
    imported: SigningKey = kind.import_key({name: value for name, value in key.items() if name != "state"})
    if not imported.is_private or imported.thumbprint() != key["kid"] or key.get("use", "sig") != "sig":
        raise ValueError
    return imported


def _pepper(key: dict[str, Any]) -> bytes:
    raw = urlsafe_b64decode(key["k"] + "=" * (-len(key["k"]) % 4))
    if len(raw) < _MIN_PEPPER_BYTES:
        raise ValueError
    return raw
