"""Which TCP ports of this machine are free, and who has the others."""

import errno
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LISTENING = "0A"


class PortUnavailableError(Exception):
    """Says in one sentence why the application cannot listen, and what to do about it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def claim(host: str, port: int) -> None:
    """Raise unless a server could listen there now."""
    try:
        _bind(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = (
                f"port {port} is in use by {_owner(port)}; "
                f"set PORT to another one, for example: make run PORT={_next(host, port)}"
            )
        else:
            message = f"cannot listen on {host}, port {port}: {error.strerror}"
        raise PortUnavailableError(message) from error


def _bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # Connections that a stopped server left behind do not keep the next one from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        # Two sockets with SO_REUSEADDR may be bound to one port as long as neither listens.
        probe.listen(1)


def _next(host: str, port: int) -> int:
    for candidate in range(port + 1, min(port + 100, 65536)):
        with suppress(OSError):
            _bind(host, candidate)
            return candidate
    return free_port()


def _owner(port: int) -> str:
    pid, name = _owner_on_linux(port) or _owner_by_lsof(port) or (0, "")
    return f"{name} (pid {pid})" if pid else "another process"


def _owner_on_linux(port: int) -> tuple[int, str] | None:
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        # Processes of other users keep theirs to themselves, and any process may end while we look.
        with suppress(OSError):
            if str(descriptor.readlink()) in sockets:
                process = descriptor.parent.parent
                return int(process.name), (process / "comm").read_text().strip()
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == _LISTENING and local.endswith(f":{port:04X}"):
                    yield rest[5]


def _owner_by_lsof(port: int) -> tuple[int, str] | None:
    lsof = shutil.which("lsof")
    if lsof is None:
        return None
    command = [lsof, "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"^p(\d+)\nc(.*)$", shown, flags=re.MULTILINE)
    return (int(found[1]), found[2]) if found else None
