"""What the probes answer."""

from typing import Literal

from app.core.schemas.fields import Answer


class Health(Answer):
    """The process is well."""

    status: Literal["ok"] = "ok"
