"""Time-based one-time passwords (RFC 6238) with SHA-1, six digits and 30 seconds: authenticator apps support nothing else."""

import hmac
import os
from base64 import b32encode
from urllib.parse import quote, urlencode

PERIOD = 30
DIGITS = 6
# The clock of a phone may be wrong, and a person needs time to type: the code before and the code after are valid too.
_DRIFT = 1
# RFC 4226 recommends 160 bits, the output length of SHA-1.
_SECRET_BYTES = 20


def new_secret() -> bytes:
    return os.urandom(_SECRET_BYTES)


def encoded(secret: bytes) -> str:
    """Return the secret as a person types it into an app: base32, without padding."""
    return b32encode(secret).decode().rstrip("=")


def code_at(secret: bytes, step: int) -> str:
    """Return the code of a time step: the number of whole periods since 1970."""
    digest = hmac.digest(secret, step.to_bytes(8), "sha1")
    offset = digest[-1] & 0xF
    number = int.from_bytes(digest[offset : offset + 4]) & 0x7FFFFFFF
    return f"{number % 10**DIGITS:0{DIGITS}}"


def matching_step(secret: bytes, code: str, now: float) -> int | None:
    """Return the time step that a code belongs to, the latest one if it belongs to several; None for a wrong code.

    It compares every step in constant time. The caller must accept each step once, and none before an accepted one.
    """
    current = int(now) // PERIOD
    steps = range(current - _DRIFT, current + _DRIFT + 1)
    matching = [step for step in steps if hmac.compare_digest(code_at(secret, step).encode(), code.encode())]
    return max(matching, default=None)


def uri(secret: bytes, *, issuer: str, account: str) -> str:
    """Return the `otpauth` URI that an app reads from a QR code."""
    # A colon separates the two parts of the label.
    label = f"{quote(issuer.replace(':', ''), safe='')}:{quote(account, safe='@')}"
    parameters = {
        "secret": encoded(secret),
        "issuer": issuer.replace(":", ""),
        "algorithm": "SHA1",
        "digits": DIGITS,
        "period": PERIOD,
    }
    return f"otpauth://totp/{label}?{urlencode(parameters, quote_via=quote)}"
