"""The configuration of procrastinate, and a check that its tables have not changed."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from procrastinate.exceptions import ConnectorException
from psycopg import OperationalError, ProgrammingError
from psycopg.conninfo import conninfo_to_dict

import app.migrations.versions
from app.core import product
from app.core.config import DatabaseSettings
from app.core.db.failures import DatabaseUnavailableError
from app.jobs.library import conninfo, is_outage

FROZEN = Path(app.migrations.versions.__path__[0]) / "20261123_jobs.sql"


def test_the_schema_of_the_installed_library_equals_our_migration() -> None:
    """If this fails after an upgrade of procrastinate, write a migration with the statements of its `sql/migrations`."""
    shipped = resources.files("procrastinate.sql").joinpath("schema.sql").read_text()

    _, _, frozen = FROZEN.read_text().partition("-- " + "-" * 111 + "\n")

    assert re.sub(r"^ *-- squawk-ignore .*\n", "", frozen, flags=re.MULTILINE) == shipped


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql://user:p%40ss%20word@db.example.com:6543/app?ssl=verify-full",
            {
                "host": "db.example.com",
                "port": "6543",
                "user": "user",
                "password": "p@ss word",
                "dbname": "app",
                "sslmode": "verify-full",
            },
        ),
        ("postgresql://user@/app?host=a:5432&host=b:5433", {"host": "a,b", "port": "5432,5433", "user": "user"}),
        ("postgresql:///app?host=/run/postgresql", {"host": "/run/postgresql", "dbname": "app"}),
    ],
)
def test_the_worker_connects_like_the_application(url: str, expected: dict[str, str]) -> None:
    settings = DatabaseSettings.model_validate({"url": url})

    assert conninfo_to_dict(conninfo(settings)).items() >= expected.items()


def test_missing_parts_of_the_url_are_not_passed_to_libpq() -> None:
    given = conninfo_to_dict(conninfo(DatabaseSettings.model_validate({"url": "postgresql:///app"})))

    assert not given.keys() & {"host", "port", "user", "password"}


def test_the_timeouts_of_the_settings_apply_to_the_worker() -> None:
    settings = DatabaseSettings.model_validate(
        {"url": "postgresql:///app", "statement_timeout": "3s", "lock_timeout": "1s", "connect_timeout": "7s"}
    )

    given: dict[str, Any] = conninfo_to_dict(conninfo(settings))

    assert "-c statement_timeout=3000 -c lock_timeout=1000" in given["options"]
    assert given["connect_timeout"] == "7"
    assert given["tcp_user_timeout"] == "4000"
    assert given["application_name"] == f"{product.SLUG}-worker"


@pytest.mark.parametrize(
    ("cause", "expected"), [(OperationalError("gone"), True), (ProgrammingError("wrong"), False), (None, False)]
)
def test_only_an_unavailable_database_is_an_outage(cause: Exception | None, expected: bool) -> None:
    error = ConnectorException()
    error.__cause__ = cause

    assert is_outage(error) is expected


@pytest.mark.parametrize(
    ("error", "expected"), [(DatabaseUnavailableError(), True), (ValueError(), False), (None, False)]
)
def test_an_outage_is_recognised_for_both_drivers(error: Exception | None, expected: bool) -> None:
    assert is_outage(error) is expected
