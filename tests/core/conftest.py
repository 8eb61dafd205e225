import json
from typing import Any

import pytest

from app.core.config import LogSettings
from app.core.observability.logs import configure
from tests.core.recording import Lines, Recording


@pytest.fixture
def recording(restored_logging: None, capsys: pytest.CaptureFixture[str]) -> Recording:  # noqa: ARG001  # Wanted for what it does afterwards.
    """Begin to write JSON, and give the lines written since the last look, each as the object it holds."""

    def begin() -> Lines:
        configure(LogSettings(), readable=False)
        return lambda: [line for line in map(json.loads, capsys.readouterr().out.splitlines()) if _is_ours(line)]

    return begin


def _is_ours(line: dict[str, Any]) -> bool:
    # The client of the tests logs what it sends.
    return not str(line["logger"]).startswith("httpx2")
