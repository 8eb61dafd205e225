"""`app/core/security/keys.py` of the release before seal keys, unchanged below this docstring, for tests of a rolling deploy.

Its own first line: The keys for tokens: signing keys for access tokens, peppers for refresh tokens and mailed links.

All keys are in one private JSON Web Key set (RFC 7517), in a file or a variable, never in the database. Each key has a
`state`. A `next` key is distributed but not used yet, the `active` key makes new tokens, and a `retiring` key only verifies.
The file may change while the process runs; see `core/security/rotation.py`.
"""

import asyncio
import hmac
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey

from app.core import base64url
from app.core.config import KeySettings
from app.core.errors import ConfigurationError

type SigningKey = ECKey | OKPKey
type Algorithm = Literal["ES256", "EdDSA"]
type State = Literal["next", "active", "retiring"]

NO_KEYS = "APP_AUTH__SIGNING_KEYS_FILE: is missing; create one with `app keys generate`"
_STATES = frozenset({"next", "active", "retiring"})
_KINDS: dict[tuple[str, str, str], type[SigningKey]] = {
    ("EC", "P-256", "ES256"): ECKey,
    ("OKP", "Ed25519", "EdDSA"): OKPKey,
}
_MIN_SECRET_BYTES = 32
# Tokens store the id of their pepper in one byte.
_MAX_PEPPER_ID = 255
# Members that only this application knows.
_PRIVATE_MEMBERS = {"state", "since"}
# Seconds between two checks whether the key file has changed.
_RELOAD_INTERVAL = 1.0

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class KeyRing:
    """The keys of this process. The whole application shares one object, and its content changes when the file does.

    Every key of the set verifies, also `next`: a process that has read a newer file may already make tokens with it.
    """

    signing: dict[str, SigningKey] = field(repr=False)
    active: str
    peppers: dict[int, bytes] = field(repr=False)
    active_pepper: int
    root: bytes = field(repr=False)
    # Returns the new key set if the file has changed.
    read_if_changed: Callable[[], "KeyRing | None"] = field(default=lambda: None, repr=False)

    def verification_key(self, kid: str) -> SigningKey | None:
        """Return the key that verifies tokens with this key id. An unknown id makes the ring check the file at once."""
        if kid not in self.signing:
            self.reload_if_changed()
        return self.signing.get(kid)

    def pepper(self, pepper_id: int) -> bytes | None:
        """Return the pepper with this id. An unknown id makes the ring check the file at once."""
        if pepper_id not in self.peppers:
            self.reload_if_changed()
        return self.peppers.get(pepper_id)

    def public_set(self) -> dict[str, list[dict[str, Any]]]:
        """Return the JSON Web Key set to publish, with public members only."""
        return {"keys": [key.as_dict(private=False, use="sig", kid=kid) for kid, key in self.signing.items()]}

    def derive(self, purpose: str) -> bytes:
        """Derive a key for one purpose, so that no two purposes share a key. It stays the same when peppers change."""
        return hmac.digest(self.root, purpose.encode(), "sha256")

    def reload_if_changed(self) -> None:
        """Replace the keys of this ring with those of the file, if the file has changed. The root stays the same."""
        other = self.read_if_changed()
        if other is None:
            return
        for one in fields(self):
            # Other objects already hold keys derived from the root, so a new root takes effect at the next start.
            if one.name not in {"root", "read_if_changed"}:
                setattr(self, one.name, getattr(other, one.name))
        log.info("keys reloaded", extra={"signing_key": self.active, "pepper_id": self.active_pepper})


@asynccontextmanager
async def reloading(ring: KeyRing) -> AsyncIterator[None]:
    """Reload the key file within a second of each change, while the block runs."""
    task = asyncio.create_task(_reload_periodically(ring), name="key-file")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _reload_periodically(ring: KeyRing) -> None:
    while True:
        await asyncio.sleep(_RELOAD_INTERVAL)
        ring.reload_if_changed()


def new_signing_key(algorithm: Algorithm, state: State) -> dict[str, Any]:
    """Create a signing key as a member of a key set."""
    while True:
        key = (
            ECKey.generate_key("P-256", private=True)
            if algorithm == "ES256"
            else OKPKey.generate_key("Ed25519", private=True)
        )
        # A command would parse an id that begins with a hyphen as an option.
        if not key.thumbprint().startswith("-"):  # pragma: no branch  # One thumbprint in 64 begins with a hyphen.
            return key.as_dict(private=True, use="sig", alg=algorithm, kid=key.thumbprint(), **state_members(state))


def new_pepper(pepper_id: int, state: State) -> dict[str, Any]:
    return _new_secret(kid=str(pepper_id), **state_members(state))


def _new_secret(**members: str) -> dict[str, Any]:
    return OctKey.generate_key(8 * _MIN_SECRET_BYTES).as_dict(private=True, **members)


def state_members(state: State) -> dict[str, str]:
    """Return the members of a key that give its state, and the current time as the start of that state."""
    return {"state": state, "since": datetime.now(UTC).isoformat(timespec="seconds")}


def generate_key_set(algorithm: Algorithm = "ES256") -> str:
    """Create a private key set as JSON text: an active signing key, an active pepper, and the root of derived keys."""
    keys = [new_signing_key(algorithm, "active"), new_pepper(1, "active"), _new_secret(use="derive")]
    return json.dumps({"keys": keys}, indent=2)


def load_key_ring(settings: KeySettings) -> KeyRing:
    """Read the key set that the settings name. Raises `ConfigurationError`, whose text never quotes the key set."""
    if settings.signing_keys is not None:
        return parse_key_ring(settings.signing_keys.get_secret_value(), source="APP_AUTH__SIGNING_KEYS")
    if settings.signing_keys_file is None:
        raise ConfigurationError(NO_KEYS)
    file = _KeyFile(settings.signing_keys_file)
    ring = file.read()
    ring.read_if_changed = file.read_if_changed
    return ring


class _KeyFile:
    """A key set file and the version of it that was read last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None

    def read(self) -> KeyRing:
        # Before the file is read: a write during the read then gives another version, and the next check reads it.
        self._version = self._stat()
        return parse_key_ring(read_key_set(self._path), source=str(self._path))

    def read_if_changed(self) -> KeyRing | None:
        """Read the file if its version has changed. For an invalid file, log one error and return None."""
        if self._stat() == self._version:
            return None
        try:
            return self.read()
        except ConfigurationError as error:
            log.error("key file rejected, keys unchanged", extra={"reason": str(error)})  # noqa: TRY400  # No traceback: it could quote the file.
            return None

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def read_key_set(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not a text file"
        raise ConfigurationError(f"{path}: the signing keys cannot be read: {reason}") from None


def parse_key_ring(text: str, *, source: str) -> KeyRing:
    """Read a private key set from its JSON text. Raises `ConfigurationError`, whose text names `source` and never quotes a key."""
    try:
        keys = json.loads(text)["keys"]
        signing = [key for key in keys if key["kty"] != "oct"]
        peppers = [{**key, "kid": int(key["kid"])} for key in keys if is_pepper(key)]
        secrets = {key["kid"]: _pepper_secret(key) for key in peppers}
        ring = KeyRing(
            signing={key["kid"]: _import(key) for key in signing},
            active=_active_kid(signing),
            peppers=secrets,
            active_pepper=_active_kid(peppers),
            root=_root(keys, secrets),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, JoseError):
        # The cause is not chained: its text may quote the file.
        raise ConfigurationError(
            f"{source}: this is not a private key set in the format of `app keys generate`"
        ) from None
    return ring


def is_root(key: dict[str, Any]) -> bool:
    """Return whether the key is the root, from which other keys are derived. It has no state and is never rotated."""
    return key["kty"] == "oct" and key.get("use") == "derive"


def is_pepper(key: dict[str, Any]) -> bool:
    return key["kty"] == "oct" and not is_root(key)


def with_root(key_set: dict[str, Any]) -> dict[str, Any]:
    """Return a key set that contains its root, so that derived keys stay the same when the peppers change."""
    if any(is_root(key) for key in key_set["keys"]):
        return key_set
    root = parse_key_ring(json.dumps(key_set), source="").root
    added = {"kty": "oct", "use": "derive", "k": base64url.encode(root)}
    return {**key_set, "keys": [*key_set["keys"], added]}


def _root(keys: list[dict[str, Any]], peppers: dict[int, bytes]) -> bytes:
    roots = [_secret(key) for key in keys if is_root(key)]
    # Older key sets have no root. Theirs is derived from the first pepper.
    (root,) = roots or [hmac.digest(peppers[min(peppers)], b"derive", "sha256")]
    return root


def _active_kid(keys: list[dict[str, Any]]) -> Any:
    """Return the id of the only active key. Raises `ValueError` for duplicate ids, an unknown state, or not exactly one active key."""
    states = {key["kid"]: key["state"] for key in keys}
    # A key with a misspelled state would never be used.
    if len(states) != len(keys) or not _STATES.issuperset(states.values()):
        raise ValueError
    (active,) = [kid for kid, state in states.items() if state == "active"]
    return active


def _import(key: dict[str, Any]) -> SigningKey:
    # `_KINDS` lists each valid combination. The library would also accept a curve that the algorithm cannot sign with.
    kind = _KINDS[key["kty"], key["crv"], key["alg"]]
    imported: SigningKey = kind.import_key({name: value for name, value in key.items() if name not in _PRIVATE_MEMBERS})
    if not imported.is_private or imported.thumbprint() != key["kid"] or key.get("use", "sig") != "sig":
        raise ValueError
    return imported


def _pepper_secret(key: dict[str, Any]) -> bytes:
    if not 0 <= key["kid"] <= _MAX_PEPPER_ID:
        raise ValueError
    return _secret(key)


def _secret(key: dict[str, Any]) -> bytes:
    raw = base64url.decode(key["k"].rstrip("="))
    if len(raw) < _MIN_SECRET_BYTES:
        raise ValueError
    return raw
