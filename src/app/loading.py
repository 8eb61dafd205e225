"""How modules are loaded: without the garbage collector, out of its sight for good, and without what nobody uses."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# structlog loads it, where it is installed, for tracebacks in colour, which are not written here: 50 ms of each start.
_LEFT_OUT = "rich"


@contextmanager
def loading() -> Iterator[None]:
    """Load what stays. The collector would look through it over and over: a tenth of a start, and of each full look later."""
    gc.disable()
    is_new = _LEFT_OUT not in sys.modules
    if is_new:
        sys.modules[_LEFT_OUT] = None  # type: ignore[assignment]  # To the import system: a module that is not installed.
    try:
        yield
    finally:
        if is_new:
            del sys.modules[_LEFT_OUT]
        gc.freeze()
        gc.enable()
