import asyncio
import signal
import threading
from collections.abc import Iterator

import pytest

from app.core.shutdown import Shutdown, shutdown_on_signals

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def received() -> Iterator[list[int]]:
    """The signals that the server has handled."""
    received: list[int] = []
    before = {one: signal.signal(one, lambda number, _frame: received.append(number)) for one in SIGNALS}
    yield received
    for one, handler in before.items():
        signal.signal(one, handler)


def test_a_shutdown_begins_once() -> None:
    shutdown, calls = Shutdown(), []

    with shutdown.calling(lambda: calls.append(1)):
        shutdown.begin()
        shutdown.begin()

    assert (shutdown.has_begun, calls) == (True, [1])


def test_a_callback_is_called_only_inside_its_block() -> None:
    shutdown, calls = Shutdown(), []

    with shutdown.calling(lambda: calls.append(1)):
        pass
    shutdown.begin()

    assert calls == []


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_begins_the_shutdown_and_reaches_the_server(received: list[int], number: signal.Signals) -> None:
    of_server = signal.getsignal(number)
    with shutdown_on_signals() as shutdown:
        began = asyncio.Event()
        with shutdown.calling(began.set):
            signal.raise_signal(number)

            await asyncio.wait_for(began.wait(), 5)

    assert received == [number]
    assert signal.getsignal(number) is of_server


async def test_a_handler_that_the_server_sets_later_stays(received: list[int]) -> None:
    with shutdown_on_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert received == []


@pytest.mark.usefixtures("received")
async def test_a_signal_that_the_server_does_not_handle_keeps_its_effect() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    with shutdown_on_signals():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_another_thread_leaves_the_signals_alone(received: list[int]) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    found: list[object] = []

    def run() -> None:
        with shutdown_on_signals() as shutdown:
            found.extend([shutdown.has_begun, *map(signal.getsignal, SIGNALS)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert found == [False, *before]
    assert received == []
