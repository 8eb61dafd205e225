"""The HTTP server around the application."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import override

import uvicorn

from app.core.config import Settings
from app.core.telemetry import configure
from app.main import create_app

_HEADER_LIMIT = 65_536
_KEEP_ALIVE = 75


class PortInUseError(Exception):
    """Another process listens on the port; the text names it where that can be known."""


def serve(settings: Settings, *, announce: Callable[[], None] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; `announce` is called once connections are accepted."""
    configure(settings.log, readable=settings.environment == "local")
    listener = listen(settings.server.host, settings.server.port)
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        # Forwarded headers are believed from nobody: whoever sends them would choose their own address.
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.server.shutdown_grace.total_seconds()),
        h11_max_incomplete_event_size=_HEADER_LIMIT,
        lifespan="on",
    )
    server = _Server(config, announce)
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._announce = announce

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._announce and self.started and not self.should_exit:
            await asyncio.to_thread(self._announce)


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket, or say who has it."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise PortInUseError(_in_use(host, port, error)) from None
    return listener


def _in_use(host: str, port: int, error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        return f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
    holder = _holder(port)
    return f"port {port} is in use{f' by {holder}' if holder else ''}; set PORT to another one, for example PORT={port + 1}"


def _holder(port: int) -> str | None:
    """Name the process that listens on a port, where `/proc` tells."""
    inodes = _listening_inodes(port)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in inodes:
            process = link.parent.parent
            return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes
