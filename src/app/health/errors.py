"""Errors of the probes."""

from collections.abc import Iterable

from app.core.errors import UnavailableError


class NotReadyError(UnavailableError):
    """The process runs, but cannot serve requests. The detail lists the reasons."""

    code = "not_ready"
    detail = "This process is not ready to serve requests."

    def __init__(self, reasons: Iterable[str]) -> None:
        super().__init__()
        self.detail = f"Not ready: {', '.join(reasons)}."
