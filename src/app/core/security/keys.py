"""The secrets that tokens are made with: signing keys for access tokens, peppers for everything opaque.

They come as one private JSON Web Key set (RFC 7517), from a file or the environment, never from the database. Each key
carries a `state`: `next` is known everywhere before it is used, `active` is used, `retiring` still verifies. A file may
change while the process runs; see `core/security/rotation.py`.
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

NO_KEYS = "APP_AUTH__SIGNING_KEYS_FILE: is missing; make one with `app keys generate`"
_STATES = frozenset({"next", "active", "retiring"})
_KINDS: dict[tuple[str, str, str], type[SigningKey]] = {
    ("EC", "P-256", "ES256"): ECKey,
    ("OKP", "Ed25519", "EdDSA"): OKPKey,
}
_MIN_SECRET_BYTES = 32
# Tokens hold the id of their pepper in one byte.
_MAX_PEPPER_ID = 255
# Members of ours that mean nothing to others.
_OURS = {"state", "since"}
_LOOK_EVERY = 1.0

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class KeyRing:
    """The keys of this process: one object for all who use them, whose content changes when the file does.

    Every key of the set verifies, `next` included: a process that has read the file a moment earlier may use it already.
    """

    signing: dict[str, SigningKey] = field(repr=False)
    active: str
    peppers: dict[int, bytes] = field(repr=False)
    active_pepper: int
    root: bytes = field(repr=False)
    # Gives the set anew when its file has changed.
    look: Callable[[], "KeyRing | None"] = field(default=lambda: None, repr=False)

    def verifying(self, kid: str) -> SigningKey | None:
        """Give the key that may verify a token of this id."""
        if kid not in self.signing:
            self.catch_up()
        return self.signing.get(kid)

    def pepper(self, pepper_id: int) -> bytes | None:
        """Give the pepper of this id."""
        if pepper_id not in self.peppers:
            self.catch_up()
        return self.peppers.get(pepper_id)

    def public_set(self) -> dict[str, list[dict[str, Any]]]:
        """Give the JSON Web Key set to publish: public members only."""
        return {"keys": [key.as_dict(private=False, use="sig", kid=kid) for kid, key in self.signing.items()]}

    def derive(self, purpose: str) -> bytes:
        """Derive a key for one purpose, so that no two purposes share one. It stays the same when peppers change."""
        return hmac.digest(self.root, purpose.encode(), "sha256")

    def catch_up(self) -> None:
        """Take up the file's keys if it has changed: by the loop, and at once when a token names a key not known here."""
        other = self.look()
        if other is None:
            return
        for one in fields(self):
            # What was derived from the root has been handed out already: another one counts from the next start on.
            if one.name not in {"root", "look"}:
                setattr(self, one.name, getattr(other, one.name))
        log.info("the keys have changed", extra={"signing_key": self.active, "pepper_id": self.active_pepper})


@asynccontextmanager
async def following(ring: KeyRing) -> AsyncIterator[None]:
    """Take up changes of the key file for as long as the block runs."""
    task = asyncio.create_task(_follow(ring), name="key-file")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _follow(ring: KeyRing) -> None:
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        ring.catch_up()


def new_signing_key(algorithm: Algorithm, state: State) -> dict[str, Any]:
    """Make a signing key, as a member of a key set."""
    while True:
        key = (
            ECKey.generate_key("P-256", private=True)
            if algorithm == "ES256"
            else OKPKey.generate_key("Ed25519", private=True)
        )
        # A command would take it for an option.
        if not key.thumbprint().startswith("-"):  # pragma: no branch  # One in 64 does.
            return key.as_dict(private=True, use="sig", alg=algorithm, kid=key.thumbprint(), **standing(state))


def new_pepper(pepper_id: int, state: State) -> dict[str, Any]:
    """Make a pepper, as a member of a key set."""
    return _new_secret(kid=str(pepper_id), **standing(state))


def _new_secret(**members: str) -> dict[str, Any]:
    return OctKey.generate_key(8 * _MIN_SECRET_BYTES).as_dict(private=True, **members)


def standing(state: State) -> dict[str, str]:
    """Give the members that say where in its life a key stands, and since when."""
    return {"state": state, "since": datetime.now(UTC).isoformat(timespec="seconds")}


def generate_key_set(algorithm: Algorithm = "ES256") -> str:
    """Make a new private key set, as JSON text: one active signing key, one pepper, and the root of derived keys."""
    keys = [new_signing_key(algorithm, "active"), new_pepper(1, "active"), _new_secret(use="derive")]
    return json.dumps({"keys": keys}, indent=2)


def load_key_ring(settings: KeySettings) -> KeyRing:
    """Read the key set the settings point to; whatever is wrong with it is said without showing it."""
    if settings.signing_keys is not None:
        return parse_key_ring(settings.signing_keys.get_secret_value(), source="APP_AUTH__SIGNING_KEYS")
    if settings.signing_keys_file is None:
        raise ConfigurationError(NO_KEYS)
    file = _KeyFile(settings.signing_keys_file)
    ring = file.read()
    ring.look = file.look
    return ring


class _KeyFile:
    """A key set file, and which version of it was read last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None

    def read(self) -> KeyRing:
        # Before reading: what is written meanwhile is then another version.
        self._version = self._stat()
        return parse_key_ring(read_key_set(self._path), source=str(self._path))

    def look(self) -> KeyRing | None:
        """Read it again if it is another version; one that cannot be used is told once, and changes nothing."""
        if self._stat() == self._version:
            return None
        try:
            return self.read()
        except ConfigurationError as error:
            log.error("the keys stay as they are: the file cannot be used", extra={"reason": str(error)})  # noqa: TRY400  # No traceback: it could quote the file.
            return None

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def read_key_set(path: Path) -> str:
    """Read the text of a key set file."""
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
        peppers = [{**key, "kid": int(key["kid"])} for key in keys if is_pepper(key)]
        secrets = {key["kid"]: _pepper(key) for key in peppers}
        ring = KeyRing(
            signing={key["kid"]: _import(key) for key in signing},
            active=_only_active(signing),
            peppers=secrets,
            active_pepper=_only_active(peppers),
            root=_root(keys, secrets),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, JoseError):
        # The cause is not chained: its text may quote the file.
        message = f"{source}: this is not a private key set as `app keys generate` makes it"
        raise ConfigurationError(message) from None
    return ring


def is_root(key: dict[str, Any]) -> bool:
    """Tell the secret that others are derived from: it has no state, and outlives all peppers."""
    return key["kty"] == "oct" and key.get("use") == "derive"


def is_pepper(key: dict[str, Any]) -> bool:
    """Tell a pepper from the signing keys and the root."""
    return key["kty"] == "oct" and not is_root(key)


def with_root(key_set: dict[str, Any]) -> dict[str, Any]:
    """Give a set with its root written down, so that it stays the same when the peppers change."""
    if any(is_root(key) for key in key_set["keys"]):
        return key_set
    root = parse_key_ring(json.dumps(key_set), source="").root
    added = {"kty": "oct", "use": "derive", "k": base64url.encode(root)}
    return {**key_set, "keys": [*key_set["keys"], added]}


def _root(keys: list[dict[str, Any]], peppers: dict[int, bytes]) -> bytes:
    roots = [_secret(key) for key in keys if is_root(key)]
    # A set from before there were roots: its first pepper has to do.
    (root,) = roots or [hmac.digest(peppers[min(peppers)], b"derive", "sha256")]
    return root


def _only_active(keys: list[dict[str, Any]]) -> Any:
    states = {key["kid"]: key["state"] for key in keys}
    # A mistyped state would be a key that nothing ever uses.
    if len(states) != len(keys) or not _STATES.issuperset(states.values()):
        raise ValueError
    (active,) = [kid for kid, state in states.items() if state == "active"]
    return active


def _import(key: dict[str, Any]) -> SigningKey:
    # The combinations are spelled out: the library also takes a curve that the algorithm cannot sign with.
    kind = _KINDS[key["kty"], key["crv"], key["alg"]]
    imported: SigningKey = kind.import_key({name: value for name, value in key.items() if name not in _OURS})
    if not imported.is_private or imported.thumbprint() != key["kid"] or key.get("use", "sig") != "sig":
        raise ValueError
    return imported


def _pepper(key: dict[str, Any]) -> bytes:
    if not 0 <= key["kid"] <= _MAX_PEPPER_ID:
        raise ValueError
    return _secret(key)


def _secret(key: dict[str, Any]) -> bytes:
    raw = base64url.decode(key["k"].rstrip("="))
    if len(raw) < _MIN_SECRET_BYTES:
        raise ValueError
    return raw
