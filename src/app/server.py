"""The HTTP server around the application."""

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import override

import uvicorn

from app.core.config import Settings
from app.core.exposition import exposition
from app.core.keys import load_key_ring
from app.core.listening import listen
from app.core.telemetry import configure
from app.main import create_app

_HEADER_LIMIT = 65_536
_KEEP_ALIVE = 75

log = logging.getLogger(__name__)


def serve(settings: Settings, *, announce: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM; `announce` is called once connections are accepted."""
    configure(settings.log, readable=settings.environment == "local")
    # The application loads them as well, and would fail with a traceback.
    load_key_ring(settings.auth)
    with exposition(settings.telemetry) as exposed, listen(settings.server.host, settings.server.port) as listener:
        config = uvicorn.Config(
            create_app(settings, exposition=exposed),
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
        _Server(config, listener, announce).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, listener: socket.socket, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._listener = listener
        self._announce = announce

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # With PORT=0 nothing else tells.
        host, port, *_ = self._listener.getsockname()
        log.info("listening", extra={"host": host, "port": port})
        await asyncio.to_thread(self._announce)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # uvicorn would raise it again once everything is closed, and an orderly end would look like a crash.
        self._captured_signals.clear()
