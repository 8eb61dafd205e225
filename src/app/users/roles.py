"""Roles, scopes, and the scopes of each role. Add your own here."""

from enum import StrEnum
from typing import Final

from app import features


class Role(StrEnum):
    """Each account has exactly one role."""

    USER = "user"
    ADMIN = "admin"


def _declared() -> dict[str, str]:
    """Return all scopes with their descriptions, from `SCOPES` in the `scopes.py` of each feature."""
    found: dict[str, str] = {}
    for feature, module in features.parts("scopes"):
        if taken := found.keys() & module.SCOPES.keys():
            message = f"another feature already declares the scope {', '.join(sorted(taken))}; rename it in app.{feature}.scopes"
            raise ValueError(message)
        found |= module.SCOPES
    return found


SCOPES: Final = _declared()

GRANTS: Final[dict[Role, frozenset[str]]] = {
    Role.USER: frozenset(),
    Role.ADMIN: frozenset(SCOPES),
}


def granted(role: str) -> frozenset[str]:
    """Return the scopes of a role. A role that is unknown to this release has none."""
    return GRANTS[Role(role)] if role in Role else frozenset()
