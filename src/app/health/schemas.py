"""Responses of the probes."""

from typing import Literal

from app.core.schemas.fields import Answer


class Health(Answer):
    """The probe succeeded."""

    status: Literal["ok"] = "ok"
