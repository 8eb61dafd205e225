"""base64url without padding (RFC 4648, 5), in its one spelling."""

from base64 import urlsafe_b64decode, urlsafe_b64encode


def encode(raw: bytes) -> str:
    """Write bytes as text."""
    return urlsafe_b64encode(raw).decode().rstrip("=")


def decode(text: str) -> bytes:
    """Read the bytes. Raises ValueError for any text that `encode` does not write."""
    raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    # Python's decoder skips characters outside the alphabet, and ignores bits beyond the last byte.
    if encode(raw) != text:
        message = "this is not base64url without padding"
        raise ValueError(message)
    return raw
