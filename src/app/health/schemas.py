"""Responses of the probes."""

from typing import Literal

from pydantic import Field

from app.core.schemas.fields import Answer


class Health(Answer):
    """The probe succeeded."""

    status: Literal["ok"] = "ok"


class Readiness(Health):
    """The process can serve requests."""

    standby: Literal["in_use", "behind", "unreachable", "wrong_server", "unknown_position"] | None = Field(
        default=None, description="Only if a standby is set: whether reads use it, and why they use the primary."
    )
