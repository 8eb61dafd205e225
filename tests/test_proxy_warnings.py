"""Warnings about unsafe settings of proxies, at the start."""

import pytest

from app import startup
from app.settings import settings_model
from tests.conftest import KEY_SET, make_settings

URL = "postgresql://app@127.0.0.1/app"


def warnings(environment: str, *proxies: str) -> list[str]:
    server = {"trusted_proxies": proxies, "public_url": "https://example.com", "host": "0.0.0.0"}  # noqa: S104
    settings = settings_model().model_validate(
        {
            "environment": environment,
            "server": server,
            "database": {"url": URL},
            "auth": {"signing_keys": KEY_SET},
        }
    )
    return list(startup.proxy_problems(settings))


@pytest.mark.parametrize("everything", ["0.0.0.0/0", "::/0"])
@pytest.mark.parametrize("environment", ["test", "production"])
def test_proxies_with_any_address_are_a_warning(environment: str, everything: str) -> None:
    (warning,) = warnings(environment, "10.0.0.0/8", everything)

    assert warning.startswith("it trusts every address")


def test_production_without_proxies_is_a_warning() -> None:
    (warning,) = warnings("production")

    assert warning.startswith("it is not set")


def test_listed_proxies_are_no_warning() -> None:
    assert warnings("production", "10.0.0.0/8", "192.0.2.1/32") == []
    assert warnings("test") == []


@pytest.mark.usefixtures("restored_logging")
def test_the_warning_is_logged_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    startup.prepare(make_settings(URL, server={"trusted_proxies": ["0.0.0.0/0"]}))

    assert "APP_SERVER__TRUSTED_PROXIES: it trusts every address" in capsys.readouterr().out
