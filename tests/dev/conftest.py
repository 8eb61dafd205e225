"""A prepared cluster that tests copy, because initdb takes a second."""

import shutil
from pathlib import Path

import pytest

from app.dev.postgres.cluster import Cluster


@pytest.fixture(scope="session")
def prepared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prepared") / "postgres"
    with Cluster(directory, durable=False):
        pass
    return directory


@pytest.fixture
def directory(prepared_cluster: Path, tmp_path: Path) -> Path:
    """A stopped cluster for one test."""
    return Path(shutil.copytree(prepared_cluster, tmp_path / "postgres"))
