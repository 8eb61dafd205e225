"""Imports modules without garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    # The imported objects live until the process exits. Their traversal would take a tenth of the time to start, and of each
    # full collection.
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
