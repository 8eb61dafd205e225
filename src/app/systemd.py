"""Tells systemd, or another service manager, about the state of the service: the protocol of sd_notify(3)."""

import logging
import os
import socket
import time
from collections.abc import MutableMapping

VARIABLE = "NOTIFY_SOCKET"
# Seconds. A service manager that does not read must not stop the service.
_TIMEOUT = 1.0

log = logging.getLogger(__name__)


class ServiceManager:
    """The service manager that listens on a datagram socket. Without an address, every method does nothing.

    The processes that this one starts must not notify, so `from_environment` removes the variable.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> "ServiceManager":
        """Take the address out of `NOTIFY_SOCKET`."""
        return cls(environment.pop(VARIABLE, None))

    def ready(self, status: str) -> None:
        """Report that the service has started, or that a reload is over."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self, status: str) -> None:
        """Report that a reload has begun. `ready` ends it."""
        # systemd ignores the end of an earlier reload by this time.
        self._send(
            "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", f"STATUS={status}"
        )

    def confirm_reload(self, status: str) -> None:
        """Report a reload that is over at once, because there is nothing to do."""
        self.reloading("reloading")
        self.ready(status)

    def stopping(self, status: str) -> None:
        """Report that the service has begun to stop."""
        self._send("STOPPING=1", f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # The first byte of an abstract address is zero, which an environment variable cannot contain.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_TIMEOUT)
                sender.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning("service manager not notified", extra={"address": self._address, "error": str(error)})
