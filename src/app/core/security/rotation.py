"""Key rotation in the private key set file. The states of a key are: next → active → retiring → removed.

A key is `next` while it is distributed, `active` while it makes tokens, and `retiring` while tokens made with it may be valid.
A change replaces the whole file in one step and keeps its owner and mode. Running processes then reload it. No output of this
module contains a private member of a key.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TextIO, override

from app.core.config import KeySettings
from app.core.errors import ConfigurationError
from app.core.security.keys import (
    NO_KEYS,
    Algorithm,
    all_keys,
    is_pepper,
    is_root,
    is_seal_key,
    load_key_ring,
    new_pepper,
    new_seal_key,
    new_signing_key,
    parse_key_ring,
    read_key_set,
    seal_number,
    state_members,
    with_keys,
    with_root,
)

type Kind = Literal["signing", "pepper", "seal"]
type Key = dict[str, Any]

# Minimum time between the distribution of a key and its first use. Services that verify access tokens cache the published set
# for an hour or more. Only the processes of this application need a pepper or a seal key.
LEAD: dict[Kind, timedelta] = {
    "signing": timedelta(hours=24),
    "pepper": timedelta(minutes=10),
    "seal": timedelta(minutes=10),
}
# An access token is valid for at most 15 minutes. The rest is a margin for a process that reloads the file late.
SIGNED_TOKEN_LIFETIME = timedelta(minutes=20)


class KeyChangeError(Exception):
    """The change is not possible. The text says why, and what to do."""


@dataclass(frozen=True)
class KeyStatus:
    """The state of a key, without its secret."""

    kind: Kind
    algorithm: str
    state: str
    since: datetime | None
    kid: str

    @override
    def __str__(self) -> str:
        since = f"{self.since:%Y-%m-%d %H:%M}Z" if self.since else "unknown"
        return f"{self.kind:8} {self.algorithm:7} {self.state:9} since {since:18} {self.kid}"


def list_keys(settings: KeySettings) -> list[KeyStatus]:
    # An invalid key set raises the same error as at the start of the server.
    load_key_ring(settings)
    given = settings.signing_keys
    key_set = json.loads(given.get_secret_value() if given else read_key_set(_file(settings)))
    return [
        KeyStatus(_kind(key), key.get("alg", ""), key["state"], _since(key), key["kid"])
        for key in all_keys(key_set)
        if not is_root(key)
    ]


@contextmanager
def changing(settings: KeySettings) -> Iterator[list[Key]]:
    """Yield the keys of the file as a list that the block changes. If it raises no exception, replace the file."""
    # The target of a symbolic link is replaced, not the link.
    path = _file(settings).resolve()
    staging = path.with_name(f"{path.name}.new")
    descriptor = _create_staging_file(staging, path)
    try:
        with os.fdopen(descriptor, "w") as output:
            text = read_key_set(path)
            parse_key_ring(text, source=str(path))
            key_set = with_root(json.loads(text))
            keys = all_keys(key_set)
            yield keys
            changed = json.dumps(with_keys(key_set, keys), indent=2)
            # No change may leave a file that a process cannot start with.
            parse_key_ring(changed, source=str(path))
            output.write(changed)
            _copy_permissions_and_sync(output, path.stat())
        staging.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def _file(settings: KeySettings) -> Path:
    if settings.signing_keys is not None:
        raise KeyChangeError(
            "the keys come from APP_AUTH__SIGNING_KEYS, which no command can change; put them into a file, and set "
            "APP_AUTH__SIGNING_KEYS_FILE to its path instead"
        )
    if settings.signing_keys_file is None:
        raise ConfigurationError(NO_KEYS)
    return settings.signing_keys_file


def _create_staging_file(staging: Path, path: Path) -> int:
    # O_EXCL refuses the second of two concurrent commands. The mode keeps the file private from the first moment.
    try:
        return os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeyChangeError(
            f"{path}: another command is changing the keys; if it was interrupted, remove {staging}"
        ) from None
    except OSError as error:
        raise KeyChangeError(f"{path}: the file cannot be replaced: {os.strerror(error.errno or 0)}") from None


def _copy_permissions_and_sync(output: TextIO, original: os.stat_result) -> None:
    output.flush()
    # The processes that read the old file must be able to read the new one, even if another user runs the command.
    os.fchown(output.fileno(), original.st_uid, original.st_gid)
    os.fchmod(output.fileno(), stat.S_IMODE(original.st_mode))
    os.fsync(output.fileno())


def _sync_folder(folder: Path) -> None:
    """Write the new directory entry to the disk, so that the replacement survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add(keys: list[Key], kind: Kind, algorithm: Algorithm) -> Key:
    """Add a `next` key, and return it. The first seal key of a set is `active`, because none precedes it."""
    if known := _in_state(keys, kind, "next"):
        raise KeyChangeError(
            f"{known['kid']} is already the next {kind} key; retire the active key so that it takes over, or remove it"
        )
    key = _new_key(keys, kind, algorithm)
    keys.append(key)
    return key


def _new_key(keys: list[Key], kind: Kind, algorithm: Algorithm) -> Key:
    if kind == "signing":
        return new_signing_key(algorithm, "next")
    if kind == "pepper":
        return new_pepper(max(int(key["kid"]) for key in keys if is_pepper(key)) + 1, "next")
    numbers = [seal_number(key["kid"]) for key in keys if is_seal_key(key)]
    return new_seal_key(max(numbers) + 1, "next") if numbers else new_seal_key(1, "active")


def retire(keys: list[Key], kid: str, *, force: bool) -> Key:
    """Retire the active key, activate the next one, and return the latter."""
    key = _find(keys, kid)
    kind = _kind(key)
    if key["state"] != "active":
        raise KeyChangeError(f"{kid} is {key['state']}; only the active key can be retired")
    successor = _in_state(keys, kind, "next")
    if successor is None:
        raise KeyChangeError(f"there is no {kind} key that can replace {kid}; first add one with `app keys add {kind}`")
    if not force:
        _refuse_early(successor, LEAD[kind], f"some processes or services may not know {successor['kid']} yet")
    successor |= state_members("active")
    key |= state_members("retiring")
    return successor


def remove(keys: list[Key], kid: str, *, refresh_token_lifetime: timedelta, force: bool) -> Key:
    """Remove a key, and return it. All tokens made with it become invalid, and nothing sealed with it can be unsealed."""
    key = _find(keys, kid)
    if key["state"] == "active":
        raise KeyChangeError(f"{kid} is active; first retire it with `app keys retire {kid}`")
    if key["state"] == "retiring" and not force:
        _refuse_removal(key, _kind(key), refresh_token_lifetime)
    keys.remove(key)
    return key


def _refuse_removal(key: Key, kind: Kind, refresh_token_lifetime: timedelta) -> None:
    if kind == "seal":
        _refuse_early(key, LEAD["seal"], f"some processes may still seal with {key['kid']}")
    else:
        lifetime = refresh_token_lifetime if kind == "pepper" else SIGNED_TOKEN_LIFETIME
        _refuse_early(key, lifetime, f"tokens made with {key['kid']} may still be valid")


def _refuse_early(key: Key, period: timedelta, reason: str) -> None:
    # An edit by hand can remove `since`. Then the full period counts from now, at each call, so only --force helps.
    since = _since(key) or datetime.now(UTC)
    if since + period > datetime.now(UTC):
        raise KeyChangeError(f"{reason}; wait until {since + period:%Y-%m-%d %H:%M}Z, or use --force")


def _find(keys: list[Key], kid: str) -> Key:
    for key in keys:
        if not is_root(key) and key["kid"] == kid:
            return key
    raise KeyChangeError(f"there is no key {kid}; `app keys list` shows all keys")


def _in_state(keys: list[Key], kind: Kind, state: str) -> Key | None:
    return next((key for key in keys if not is_root(key) and _kind(key) == kind and key["state"] == state), None)


def _kind(key: Key) -> Kind:
    if is_seal_key(key):
        return "seal"
    return "pepper" if is_pepper(key) else "signing"


def _since(key: Key) -> datetime | None:
    try:
        return datetime.fromisoformat(key["since"])
    except (KeyError, TypeError, ValueError):
        return None
