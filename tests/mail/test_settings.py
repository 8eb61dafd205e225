"""Validation of the mail settings, in general and for production."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.core.config import Settings
from app.jobs.settings import runs_in_web_process
from app.mail.settings import MailSettings
from tests.conftest import make_settings

SAFE = {"url": "smtp://mail.example.com", "from_address": "app@example.com"}


@pytest.mark.parametrize(
    "url",
    [
        "smtp://",
        "smtp:mail.example.com",
        "smtp://mail.example.com:port",
        "smtp://mail.example.com:0",
        "smtp://[::1",
        "http://mail.example.com",
        "file://mail/directory",
        "file:///",
        "console://there",
        "console:there",
        "mail.example.com",
    ],
)
def test_an_invalid_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValidationError, match="write it as smtp://") as caught:
        MailSettings.model_validate({"url": url})

    assert "mail.example.com" not in caught.value.errors(include_input=False)[0]["msg"]


@pytest.mark.parametrize(
    "address", ["", "app", "app@", "Accounts <app@example.com>", "a@b@c", "app@example.com\nBcc: x"]
)
def test_an_invalid_sender_address_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match=r"write it as name@example\.com"):
        MailSettings.model_validate({"from_address": address})


def test_a_sender_name_with_a_line_break_is_refused() -> None:
    with pytest.raises(ValidationError, match="unprintable character"):
        MailSettings.model_validate({"from_name": "Accounts\nBcc: x"})


@pytest.mark.parametrize(
    ("url", "settings", "demands"),
    [
        ("smtp://mail.example.com", {}, True),
        ("smtp://192.0.2.1:25", {}, True),
        ("smtp://localhost.example.com", {}, True),
        ("smtp://localhost:1025", {}, False),
        ("smtp://127.0.0.1:1025", {}, False),
        ("smtp://[::1]:1025", {}, False),
        ("smtp://mail.example.com", {"require_tls": False}, False),
        ("smtps://mail.example.com", {"require_tls": False}, True),
        ("smtps://127.0.0.1", {}, True),
    ],
)
def test_tls_is_required_unless_the_server_is_local_or_the_setting_is_off(
    url: str, settings: dict[str, Any], demands: bool
) -> None:
    assert MailSettings.model_validate({"url": url, **settings}).demands_tls is demands


def production(mail: dict[str, Any]) -> list[str]:
    settings: Settings = make_settings("postgresql://h/d", mail=mail).model_copy(update={"environment": "production"})
    return [problem for problem in settings.unsafe_in_production() if "MAIL" in problem]


@pytest.mark.parametrize(
    "mail",
    [
        SAFE,
        SAFE | {"url": "smtps://mail.example.com"},
        SAFE | {"url": "smtp://localhost"},
        {"url": "console:", "allow_undelivered": True},
    ],
)
def test_production_accepts_smtp_or_an_explicit_allow_undelivered(mail: dict[str, Any]) -> None:
    assert production(mail) == []


@pytest.mark.parametrize("url", ["console:", "file:///var/mail"])
def test_production_refuses_transports_that_do_not_deliver(url: str) -> None:
    assert production(SAFE | {"url": url}) == [
        "APP_MAIL__URL: must be smtp:// or smtps://, or set APP_MAIL__ALLOW_UNDELIVERED=true"
    ]


def test_production_refuses_a_missing_sender_address() -> None:
    assert production({"url": "smtp://mail.example.com"}) == [
        "APP_MAIL__FROM_ADDRESS: is missing; set an address of your domain"
    ]


@pytest.mark.parametrize(
    ("environment", "in_process", "runs"),
    [
        ("local", None, True),
        ("test", None, False),
        ("production", None, False),
        ("local", False, False),
        ("production", True, True),
    ],
)
def test_only_the_local_environment_runs_jobs_in_the_web_process_by_default(
    environment: str, in_process: bool | None, runs: bool
) -> None:
    settings = make_settings("postgresql://h/d", jobs={"in_process": in_process})

    assert runs_in_web_process(settings.model_copy(update={"environment": environment})) is runs
