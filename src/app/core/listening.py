"""The listening socket, and who has the port if it is taken."""

import errno
import os
import socket
from contextlib import suppress
from pathlib import Path


class PortInUseError(Exception):
    """The address cannot be listened on; the text says why, and names the process that has the port if it can."""


def listen(host: str, port: int, *, setting: str = "PORT") -> socket.socket:
    """Open the listening socket, or say who has it, and by which setting it can be another one."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "this is no name of a host"
        message = f"cannot listen on {host}:{port}: {reason}"
        raise PortInUseError(message) from None
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
    holder = _holder(port)
    return f"port {port} is in use{f' by {holder}' if holder else ''}; set {setting} to another one, for example {setting}={port + 1}"


def _holder(port: int) -> str | None:
    """Name the process that listens on a port, where `/proc` tells."""
    inodes = _listening_inodes(port)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        process = link.parent.parent
        # Processes of others cannot be looked into, and any may end while we look.
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
