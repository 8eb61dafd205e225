from collections.abc import AsyncIterator

import pytest

from tests.server.local_server import LocalServer, local_server


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with local_server() as server:
        yield server
