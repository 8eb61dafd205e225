"""The shutdown of a process, for responses that do not end by themselves.

A server waits for the responses in progress before it ends the lifespan. An event stream would make it wait until the grace period
is over, so streams must learn of the shutdown earlier.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

type _Handler = Callable[[int, FrameType | None], object]


class Shutdown:
    """Whether the process has begun to shut down. Only the event loop uses it."""

    def __init__(self) -> None:
        self.has_begun = False
        self._callbacks: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Call the callbacks. A second call does nothing."""
        if not self.has_begun:
            self.has_begun = True
            for callback in self._callbacks:
                callback()

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` if the shutdown begins while the block runs."""
        self._callbacks.append(callback)
        try:
            yield
        finally:
            self._callbacks.remove(callback)


@contextmanager
def shutdown_on_signals() -> Iterator[Shutdown]:
    """Yield a `Shutdown` that begins at SIGTERM or SIGINT, just before the server handles the signal.

    For servers that do not tell the application. Needs a running event loop. A signal that the server does not handle stays as it is.
    """
    shutdown = Shutdown()
    with ExitStack() as stack:
        # Python allows signal handlers only in the main thread.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                stack.enter_context(_beginning(shutdown, number))
        yield shutdown


@contextmanager
def _beginning(shutdown: Shutdown, number: signal.Signals) -> Iterator[None]:
    of_server = signal.getsignal(number)
    if not callable(of_server):
        yield
        return
    handler = _begin_then(shutdown, of_server, asyncio.get_running_loop())
    signal.signal(number, handler)
    try:
        yield
    finally:
        # The server may have replaced the handler in the meantime.
        if signal.getsignal(number) is handler:
            signal.signal(number, of_server)


def _begin_then(shutdown: Shutdown, of_server: _Handler, loop: asyncio.AbstractEventLoop) -> _Handler:
    def handle(number: int, frame: FrameType | None) -> None:
        # A signal handler may interrupt any code, so the event loop makes the call.
        loop.call_soon_threadsafe(shutdown.begin)
        of_server(number, frame)

    return handle
