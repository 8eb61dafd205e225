"""The life of a key in the private key set file: next → active → retiring → removed.

A key is `next` until it is known everywhere, `active` while tokens are made with it, and `retiring` while some of those may
be alive. The file is replaced as a whole or not at all, with the owner and mode it had, so that running processes take up
the change. Nothing here shows a private member.
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
    is_pepper,
    is_root,
    load_key_ring,
    new_pepper,
    new_signing_key,
    parse_key_ring,
    read_key_set,
    standing,
    with_root,
)

type Kind = Literal["signing", "pepper"]
type Key = dict[str, Any]

# How long a key is known before it is used: services that verify our tokens keep the published set for an hour or more;
# of a pepper only our own processes need to know.
LEAD: dict[Kind, timedelta] = {"signing": timedelta(hours=24), "pepper": timedelta(minutes=10)}
# An access token lives 15 minutes at most; the rest is for a process that learns late that its key has retired.
SIGNED_TOKENS_LIVE = timedelta(minutes=20)


class KeyChangeError(Exception):
    """The key set does not bear this change; the text says why, and what to do."""


@dataclass(frozen=True)
class Standing:
    """Where in its life a key is."""

    kind: Kind
    algorithm: str
    state: str
    since: datetime | None
    kid: str

    @override
    def __str__(self) -> str:
        since = f"{self.since:%Y-%m-%d %H:%M}Z" if self.since else "unknown"
        return f"{self.kind:8} {self.algorithm:7} {self.state:9} since {since:18} {self.kid}"


def listed(settings: KeySettings) -> list[Standing]:
    """Say of each key where it stands."""
    # Whatever is wrong with the set is told as the server tells it.
    load_key_ring(settings)
    given = settings.signing_keys
    keys = json.loads(given.get_secret_value() if given else read_key_set(_file(settings)))["keys"]
    return [
        Standing(_kind(key), key.get("alg", ""), key["state"], _since(key), key["kid"])
        for key in keys
        if not is_root(key)
    ]


@contextmanager
def changing(settings: KeySettings) -> Iterator[list[Key]]:
    """Give the keys of the file to change; when the block ends without an error, the file is replaced."""
    # What a link points to is replaced, not the link.
    path = _file(settings).resolve()
    staging = path.with_name(f"{path.name}.new")
    descriptor = _open(staging, path)
    try:
        with os.fdopen(descriptor, "w") as output:
            text = read_key_set(path)
            parse_key_ring(text, source=str(path))
            key_set = with_root(json.loads(text))
            yield key_set["keys"]
            changed = json.dumps(key_set, indent=2)
            # Whatever a change does, it leaves no file that a process cannot start with.
            parse_key_ring(changed, source=str(path))
            output.write(changed)
            _finish(output, like=path.stat())
        staging.replace(path)
        _flush(path.parent)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def _file(settings: KeySettings) -> Path:
    if settings.signing_keys is not None:
        raise KeyChangeError(
            "the keys are those of APP_AUTH__SIGNING_KEYS, which no command can change; put them into a file, and name it in "
            "APP_AUTH__SIGNING_KEYS_FILE instead"
        )
    if settings.signing_keys_file is None:
        raise ConfigurationError(NO_KEYS)
    return settings.signing_keys_file


def _open(staging: Path, path: Path) -> int:
    # O_EXCL: of two commands at once one is refused, and nobody else can read the file, not even for a moment.
    try:
        return os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        message = f"{path}: another command is changing the keys, or was interrupted: then remove {staging}"
        raise KeyChangeError(message) from None
    except OSError as error:
        message = f"{path}: the file cannot be replaced: {os.strerror(error.errno or 0)}"
        raise KeyChangeError(message) from None


def _finish(output: TextIO, *, like: os.stat_result) -> None:
    output.flush()
    # Whoever runs the command, those who read the file must go on reading it.
    os.fchown(output.fileno(), like.st_uid, like.st_gid)
    os.fchmod(output.fileno(), stat.S_IMODE(like.st_mode))
    os.fsync(output.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add(keys: list[Key], kind: Kind, algorithm: Algorithm) -> str:
    """Make a key known that is to be used next, and give its id."""
    if known := _in_state(keys, kind, "next"):
        message = f"{known['kid']} is known as the next {kind} key already: remove it, or let it take over"
        raise KeyChangeError(message)
    taken = [int(key["kid"]) for key in keys if is_pepper(key)]
    key = new_signing_key(algorithm, "next") if kind == "signing" else new_pepper(max(taken) + 1, "next")
    keys.append(key)
    return str(key["kid"])


def retire(keys: list[Key], kid: str, *, force: bool) -> str:
    """Let the next key take over from the active one, and give its id."""
    key = _named(keys, kid)
    kind = _kind(key)
    if key["state"] != "active":
        message = f"{kid} is {key['state']}: only the active key can retire"
        raise KeyChangeError(message)
    successor = _in_state(keys, kind, "next")
    if successor is None:
        message = f"{kid} is the only {kind} key: make another one known first, with `app keys add {kind}`"
        raise KeyChangeError(message)
    if not force:
        _wait(successor, LEAD[kind], f"{successor['kid']} has to be known everywhere before it is used")
    successor |= standing("active")
    key |= standing("retiring")
    return str(successor["kid"])


def remove(keys: list[Key], kid: str, *, refresh_tokens_live: timedelta, force: bool) -> None:
    """Take a key out of the set: whatever was made with it is worth nothing from then on."""
    key = _named(keys, kid)
    if key["state"] == "active":
        message = f"{kid} is active: let another one take over first, with `app keys retire {kid}`"
        raise KeyChangeError(message)
    if key["state"] == "retiring" and not force:
        lives = refresh_tokens_live if is_pepper(key) else SIGNED_TOKENS_LIVE
        _wait(key, lives, f"tokens made with {kid} may be alive")
    keys.remove(key)


def _wait(key: Key, period: timedelta, reason: str) -> None:
    # Somebody has edited the file by hand: nobody knows how long ago.
    since = _since(key) or datetime.now(UTC)
    if since + period > datetime.now(UTC):
        message = f"{reason}: wait until {since + period:%Y-%m-%d %H:%M}Z, or say --force"
        raise KeyChangeError(message)


def _named(keys: list[Key], kid: str) -> Key:
    for key in keys:
        if not is_root(key) and key["kid"] == kid:
            return key
    message = f"there is no key {kid}; `app keys list` shows those there are"
    raise KeyChangeError(message)


def _in_state(keys: list[Key], kind: Kind, state: str) -> Key | None:
    return next((key for key in keys if not is_root(key) and _kind(key) == kind and key["state"] == state), None)


def _kind(key: Key) -> Kind:
    return "pepper" if is_pepper(key) else "signing"


def _since(key: Key) -> datetime | None:
    try:
        return datetime.fromisoformat(key["since"])
    except (KeyError, TypeError, ValueError):
        return None
