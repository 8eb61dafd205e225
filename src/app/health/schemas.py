"""The body of a successful probe."""

from typing import Literal

from app.core.schemas.fields import Answer


class Health(Answer):
    """The process works."""

    status: Literal["ok"] = "ok"
