"""Resources that a feature opens for the life of a process.

A feature's `resources.py` has one or both of two async context managers: `open_for_web` runs in each web process,
`open_for_worker` in each process that runs jobs. Each takes a `Foundation` and yields `Resources`.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from app.core.config import Settings
from app.core.db.database import Database
from app.core.observability.metrics import Instrument
from app.core.security.keys import KeyRing
from app.core.shutdown import Shutdown

type ReadinessCheck = Callable[[], str | None]
"""Returns the reason why the process cannot serve requests yet, or None."""


@dataclass(frozen=True)
class Foundation:
    """The objects that resources can use."""

    settings: Settings
    database: Database
    keys: KeyRing
    # Begins before the lifespan ends. Only web processes begin it.
    shutdown: Shutdown = field(default_factory=Shutdown)


@dataclass(frozen=True)
class Resources:
    """The objects that a feature opened for the process."""

    # Endpoints read it from `request.state`, jobs from `work.state`.
    state: Mapping[str, Any] = field(default_factory=dict)
    # Read at each scrape of `/metrics`.
    instruments: Sequence[Instrument] = ()
    # Called for each request to `/readyz`.
    readiness: Sequence[ReadinessCheck] = ()


type Opener = Callable[[Foundation], AbstractAsyncContextManager[Resources]]


@asynccontextmanager
async def opened(openers: Iterable[Opener], foundation: Foundation) -> AsyncIterator[Resources]:
    """Open resources in order and close them in reverse order. Two features cannot use the same name in `state`."""
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(opener(foundation)) for opener in openers]
        state: dict[str, Any] = {}
        for each in found:
            if taken := state.keys() & each.state.keys():
                raise ValueError(
                    f"two features open a resource with the same name: {', '.join(sorted(taken))}; rename one"
                )
            state |= each.state
        yield Resources(
            state,
            [instrument for each in found for instrument in each.instruments],
            [check for each in found for check in each.readiness],
        )
