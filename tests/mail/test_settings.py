"""Which mail settings are accepted, and which of them in production."""

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
def test_a_url_that_names_no_transport_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValidationError, match="write it as smtp://") as caught:
        MailSettings.model_validate({"url": url})

    assert "mail.example.com" not in caught.value.errors(include_input=False)[0]["msg"]


@pytest.mark.parametrize(
    "address", ["", "app", "app@", "Accounts <app@example.com>", "a@b@c", "app@example.com\nBcc: x"]
)
def test_a_sender_that_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match=r"write it as name@example\.com"):
        MailSettings.model_validate({"from_address": address})


def test_a_name_of_the_sender_that_breaks_lines_is_refused() -> None:
    with pytest.raises(ValidationError, match="must be printable"):
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
def test_tls_is_demanded_of_every_server_elsewhere(url: str, settings: dict[str, Any], demands: bool) -> None:
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
def test_production_accepts_mail_that_is_delivered_or_undelivered_by_name(mail: dict[str, Any]) -> None:
    assert production(mail) == []


@pytest.mark.parametrize("url", ["console:", "file:///var/mail"])
def test_production_refuses_mail_that_reaches_nobody(url: str) -> None:
    assert production(SAFE | {"url": url}) == [
        "APP_MAIL__URL: must be smtp:// or smtps://, or set APP_MAIL__ALLOW_UNDELIVERED=true"
    ]


def test_production_refuses_mail_without_a_sender() -> None:
    assert production({"url": "smtp://mail.example.com"}) == [
        "APP_MAIL__FROM_ADDRESS: is missing; mail must come from an address of yours"
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
def test_the_web_process_runs_jobs_in_local_only_unless_told(
    environment: str, in_process: bool | None, runs: bool
) -> None:
    settings = make_settings("postgresql://h/d", jobs={"in_process": in_process})

    assert runs_in_web_process(settings.model_copy(update={"environment": environment})) is runs
