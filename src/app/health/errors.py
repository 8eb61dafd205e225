"""The error of a failing probe."""

from collections.abc import Iterable

from app.core.errors import UnavailableError


class NotReadyError(UnavailableError):
    """The process runs, but must not get traffic."""

    code = "not_ready"
    detail = "This process is not ready to serve."

    def __init__(self, failed: Iterable[str]) -> None:
        super().__init__()
        self.detail = f"Not ready: {', '.join(failed)}."
