"""Checks new passwords against a file of passwords from known data breaches.

The file has the format of Pwned Passwords: lines of `DIGEST:COUNT`, sorted by digest. The digest is SHA-1 in upper-case hexadecimal.
The file can have tens of gigabytes, so it is never loaded into memory: each check is a binary search in the file.
"""

import hashlib
import logging
import os
import re
from io import FileIO
from itertools import pairwise
from pathlib import Path

from app.core.errors import ConfigurationError, FieldError, InvalidInputError, is_out_of_files
from app.core.observability.metrics import Counter

_LOOKUPS = Counter(
    "breached_password_lookups",
    "Checks of new passwords against the file of breached passwords.",
    outcome=("found", "not_found", "failed"),
)
_LINE = re.compile(rb"([0-9A-F]{40})(?::\d{1,20})?(?:\r?\n|\r?\Z)")
_LONGEST_LINE = 64
_SAMPLES = 64

log = logging.getLogger(__name__)


def refuse_breached(password: str, file: Path, *, pointer: str) -> None:
    """Raise an `InvalidInputError` for a password that the file contains. If the file cannot be read, log an error and accept it.

    If no file descriptor is free, raise the `OSError`. Clients can cause that state, so it must not disable the check.
    """
    try:
        with FileIO(file) as lines:
            is_breached = _contains(lines, _digest(password))
    except (OSError, ValueError) as error:
        if is_out_of_files(error):
            raise
        # A damaged file must not stop registrations and password resets.
        log.error("breached passwords cannot be read", extra={"reason": str(error)})  # noqa: TRY400  # No traceback.
        _LOOKUPS.count("failed")
        return
    _LOOKUPS.count("found" if is_breached else "not_found")
    if is_breached:
        detail = "This password appears in known data breaches. Choose another one."
        raise InvalidInputError(FieldError(pointer, "password_too_common", detail))


def check_breached(file: Path) -> None:
    """Raise a `ConfigurationError` if the file cannot be read, or if a sample of its lines is invalid or not sorted."""
    try:
        with FileIO(file) as lines:
            _check_samples(lines, _size(lines))
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else error
        raise ConfigurationError(f"APP_AUTH__BREACHED_PASSWORDS_FILE: {file}: {reason}") from None


def _digest(password: str) -> bytes:
    return hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper().encode()


def _size(lines: FileIO) -> int:
    return os.fstat(lines.fileno()).st_size


def _contains(lines: FileIO, wanted: bytes) -> bool:
    low, high = 0, _size(lines)
    while low < high:
        begin, end, digest = _line_at(lines, (low + high) // 2)
        if digest == wanted:
            return True
        if digest < wanted:
            low = end
        else:
            high = begin
    return False


def _line_at(lines: FileIO, position: int) -> tuple[int, int, bytes]:
    """Return the start and the end of the line at a byte position, and its digest."""
    first = max(position - _LONGEST_LINE, 0)
    block = os.pread(lines.fileno(), 2 * _LONGEST_LINE, first)
    line = _LINE.match(block, block.rfind(b"\n", 0, position - first) + 1)
    if line is None:
        raise ValueError(
            f"invalid line at byte {position}; expected a SHA-1 digest in upper-case hexadecimal, a colon and a count"
        )
    return first + line.start(), first + line.end(), line[1]


def _check_samples(lines: FileIO, size: int) -> None:
    positions = [size * number // _SAMPLES for number in range(_SAMPLES)]
    samples = [_line_at(lines, position) for position in (*positions, max(size - 1, 0))]
    for (begin, _, digest), (later, _, other) in pairwise(samples):
        if later > begin and other <= digest:
            raise ValueError(f"the file is not sorted by digest; compare the lines at bytes {begin} and {later}")
