"""Imports modules without garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Disable garbage collection during the imports, and exclude the imported objects from later collections.

    They live until the process exits. To traverse them costs a tenth of the start, and a tenth of each full collection.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
