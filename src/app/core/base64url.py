"""base64url without padding (RFC 4648, section 5). Each byte string has exactly one valid encoding."""

from base64 import urlsafe_b64decode, urlsafe_b64encode


def encode(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def decode(text: str) -> bytes:
    """Decode a text. Raises ValueError for any text that `encode` does not produce."""
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    # Python's decoder skips characters outside the alphabet, and ignores bits after the last byte.
    if encode(raw) != text:
        raise ValueError("this is not base64url without padding")
    return raw
