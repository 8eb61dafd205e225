"""Signals that must not end a service: SIGHUP, which renews workers, and signals without a meaning here."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


def ignore_harmless_signals() -> None:
    """Ignore signals that end the process by default. Forked workers inherit this.

    Call this before the application is imported. A supervisor, or `logging_hangups`, handles SIGHUP later.
    """
    for harmless in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(harmless, signal.SIG_IGN)


@contextmanager
def logging_hangups(on_hangup: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Log each SIGHUP inside the block, because a single process has nothing to renew, and call `on_hangup`.

    Needs a running event loop.
    If SIGHUP is not ignored, this changes nothing: `make run` has to end with its terminal.
    """
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        yield
        return
    loop = asyncio.get_running_loop()
    # A signal handler may interrupt the writing of a log line, so the event loop writes this one.
    signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(_log_hangup, on_hangup))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _log_hangup(on_hangup: Callable[[], None]) -> None:
    log.info("SIGHUP ignored: a single process has no workers to renew; changed key files are read anyway")
    on_hangup()
