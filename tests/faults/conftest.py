"""Faults on a private PostgreSQL under real processes: a small measure in `make test`, all of it in `make faults`."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.postgres import PrivatePostgres
from tests.faults.site import private_postgres

IS_FULL = os.environ.get("FAULTS") == "full"
collect_ignore_glob = [] if IS_FULL else ["test_all_*.py"]


@pytest.fixture
async def postgres(tmp_path: Path) -> AsyncIterator[PrivatePostgres]:
    """A durable, migrated server of the test's own."""
    async with private_postgres(tmp_path) as postgres:
        yield postgres
