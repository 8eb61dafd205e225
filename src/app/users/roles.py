"""The roles, the scopes, and what each role grants. Adopters add theirs here and nowhere else."""

from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What an account is; exactly one each."""

    USER = "user"
    ADMIN = "admin"


SCOPES: Final[dict[str, str]] = {
    "users:read": "Read every account",
    "users:write": "Create, change and delete accounts",
    "audit:read": "Read the audit log",
}

GRANTS: Final[dict[Role, frozenset[str]]] = {
    Role.USER: frozenset(),
    Role.ADMIN: frozenset(SCOPES),
}


def granted(role: str) -> frozenset[str]:
    """Give the scopes that a role grants; none for a role that this release does not know."""
    return GRANTS[Role(role)] if role in Role else frozenset()
