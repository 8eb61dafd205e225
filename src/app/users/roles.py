"""Roles, scopes, and the scopes of each role. Add your own here."""

from enum import StrEnum
from typing import Final

from app import features


class Role(StrEnum):
    """Each account has exactly one role."""

    USER = "user"
    ADMIN = "admin"


def _declared() -> dict[str, str]:
    """Collect `SCOPES`, a mapping of scope to description, from the `scopes.py` of every feature."""
    found: dict[str, str] = {}
    for feature, module in features.parts("scopes"):
        if taken := found.keys() & module.SCOPES.keys():
            message = f"app.{feature}.scopes declares a scope that another feature has: {', '.join(sorted(taken))}"
            raise ValueError(message)
        found |= module.SCOPES
    return found


SCOPES: Final = _declared()

GRANTS: Final[dict[Role, frozenset[str]]] = {
    Role.USER: frozenset(),
    Role.ADMIN: frozenset(SCOPES),
}


def granted(role: str) -> frozenset[str]:
    """Return the scopes of a role. A role that this release does not know has none."""
    return GRANTS[Role(role)] if role in Role else frozenset()
