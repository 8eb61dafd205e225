"""Opens the listening socket. If the port is in use, the error names the process that uses it."""

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path


class PortInUseError(Exception):
    """The server cannot listen on the address. The text gives the reason, and the process that uses the port if it is known."""


def listen(host: str, port: int, *, setting: str = "PORT") -> socket.socket:
    """Open a listening socket. The error text names `setting` as the one to change."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "invalid host name"
        raise PortInUseError(f"cannot listen on {host}:{port}: {reason}") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise PortInUseError(_in_use(host, port, error, setting)) from None
    return listener


def _in_use(host: str, port: int, error: OSError, setting: str) -> str:
    if error.errno != errno.EADDRINUSE:
        return f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
    process = _process_on(port)
    by_process = f" by {process}" if process else ""
    return f"port {port} is in use{by_process}; set {setting} to another port, for example {setting}={port + 1}"


def _process_on(port: int) -> str | None:
    """Return the name and id of the process that listens on a port, if `/proc` shows it."""
    inodes = _listening_inodes(port)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        process = link.parent.parent
        # The process may belong to another user, or may exit during the search.
        with suppress(OSError):
            if str(link.readlink()) in inodes:
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes: set[str] = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes
