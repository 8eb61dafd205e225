"""Signals that must not end a service: SIGHUP, which renews workers, and those that have no meaning here."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


def ignore_harmless_signals() -> None:
    """Ignore what would end the process by default; forked workers inherit it.

    Called before the application is loaded. A supervisor, or `noting_hangups`, handles SIGHUP later.
    """
    for one in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)


@contextmanager
def noting_hangups() -> Iterator[None]:
    """Log each SIGHUP meanwhile: a single process has nothing to renew. To be entered where the event loop runs.

    Where SIGHUP is not ignored it belongs to the caller. `make run` ends with its terminal.
    """
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        yield
        return
    loop = asyncio.get_running_loop()
    # A handler may interrupt a log line, and must not write another one into it.
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(_note))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _note() -> None:
    log.info("SIGHUP: a single process has nothing to renew; key files are followed anyway")
