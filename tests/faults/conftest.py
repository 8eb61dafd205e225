"""Faults of PostgreSQL while server processes run. `make test` runs a small part, `make faults` all of it."""

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
    """A durable and migrated server for one test."""
    async with private_postgres(tmp_path) as postgres:
        yield postgres
