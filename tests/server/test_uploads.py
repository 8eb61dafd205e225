"""Large uploads to a real server process."""

import sys
from pathlib import Path

import pytest

from benchmarks import uploads
from tests.conftest import ROOT
from tests.servers import server_by

_MAX_GROWTH = 50_000_000


def names(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return [one.name for one in folder.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("path", uploads.PATHS)
async def test_twenty_large_bodies_at_once_do_not_grow_the_memory(clone_url: str, tmp_path: Path, path: str) -> None:
    environment = {**uploads.SETTINGS, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    async with server_by((sys.executable, *uploads.COMMAND), clone_url, environment) as server:
        growth = await uploads.measure(server.process.pid, int(server.base_url.rpartition(":")[2]), path)

    assert growth.peak < _MAX_GROWTH
    assert growth.kept < _MAX_GROWTH
    assert names(tmp_path) == []
