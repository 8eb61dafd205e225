"""What is logged, as it is written."""

from collections.abc import Callable
from typing import Any

type Lines = Callable[[], list[dict[str, Any]]]
type Recording = Callable[[], Lines]
