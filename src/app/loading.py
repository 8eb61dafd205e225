"""Loads modules without the garbage collector, and hides them from it for good."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Load what stays. The collector would look through it over and over: a tenth of a start, and of each full look later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
