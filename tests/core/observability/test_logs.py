import io
import json
import logging
import sys
from pathlib import Path
from typing import override
from uuid import UUID

import pytest
import structlog

from app.core.config import LogSettings
from app.core.db.connections import Pool
from app.core.observability.logs import REDACTED, access_log, configure, discard_unwritable_output
from tests.core.recording import Recording

pytestmark = pytest.mark.usefixtures("restored_logging")

JWS = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
REFRESH_TOKEN = "rt1.0123456789abcdefghijABCDEFGHIJ"


def test_each_record_is_one_json_object_on_one_line(recording: Recording) -> None:
    lines = recording()
    logging.getLogger("app.users").warning("two\nlines \u2028 and a %s", "\udc80 surrogate")

    (line,) = lines()

    assert line["event"] == "two\nlines \u2028 and a \udc80 surrogate"
    assert (line["level"], line["logger"]) == ("warning", "app.users")
    assert line["timestamp"].endswith("Z")


def test_records_of_structlog_and_of_the_standard_library_have_the_same_keys(recording: Recording) -> None:
    lines = recording()
    structlog.contextvars.bind_contextvars(request_id="abc12345")
    structlog.get_logger("app.access").info("request", status=200)
    logging.getLogger("some.library").error("broken", extra={"status": 500})

    ours, theirs = lines()

    assert set(ours) == set(theirs) == {"event", "level", "logger", "timestamp", "request_id", "status"}
    assert theirs["request_id"] == "abc12345"


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "new_password",
        "Authorization",
        "cookie",
        "set-cookie",
        "client_secret",
        "refresh_token",
        "db_credentials",
        "signing_keys",
        "private_key",
    ],
)
def test_the_value_of_a_key_with_a_secret_name_is_never_written(recording: Recording, key: str) -> None:
    lines = recording()
    structlog.get_logger("app").info("x", **{key: "CANARY"})
    structlog.get_logger("app").info("x", form={key: "CANARY", "inner": [{key: ["CANARY"]}]})
    logging.getLogger("library").info("x", extra={key: {"deep": "CANARY"}})

    written = lines()

    assert len(written) == 3
    assert "CANARY" not in json.dumps(written)
    assert written[0][key] == REDACTED
    assert written[1]["form"][key] == REDACTED


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Authorization: Bearer abc.def-1", f"Authorization: Bearer {REDACTED}"),
        ("header was bearer CANARY, sorry", f"header was bearer {REDACTED}, sorry"),
        ("Basic dXNlcjpwdw==", f"Basic {REDACTED}"),
        (f"got {JWS}!", f"got {REDACTED}!"),
        (f"unsigned {JWS.rpartition('.')[0]}.", f"unsigned {REDACTED}"),
        (f"token={REFRESH_TOKEN}", f"token={REDACTED}"),
        ("postgresql+asyncpg://app:s3cret@db:5432/app?ssl=require", f"postgresql+asyncpg://app:{REDACTED}@db:5432/app?ssl=require"),
        ("smtp://u:p@mail and https://x:y@host/", f"smtp://u:{REDACTED}@mail and https://x:{REDACTED}@host/"),
        ("https://example.com/a:b@c is no credential", "https://example.com/a:b@c is no credential"),
        ("nothing secret: 12:30, a@b.co", "nothing secret: 12:30, a@b.co"),
    ],
)  # fmt: skip
def test_text_that_looks_like_a_secret_is_redacted(recording: Recording, text: str, written: str) -> None:
    lines = recording()
    logging.getLogger("app").info("%s", text)
    structlog.get_logger("app").info("x", note=text, more={"inner": (text,)})

    first, second = lines()

    assert first["event"] == second["note"] == second["more"]["inner"][0] == written


def test_secrets_in_objects_of_any_type_are_redacted(recording: Recording) -> None:
    lines = recording()

    class Odd:
        @override
        def __repr__(self) -> str:
            return f"<Odd {REFRESH_TOKEN}>"

    values = [Odd(), f"Bearer {JWS}".encode(), ValueError(JWS), {JWS}, frozenset([JWS]), {1: JWS}]
    structlog.get_logger("app").info("x", values=values)

    (line,) = lines()

    assert REFRESH_TOKEN not in json.dumps(line)
    assert JWS not in json.dumps(line)
    assert json.dumps(line).count(REDACTED) == len(values)


def test_plain_values_are_unchanged(recording: Recording) -> None:
    lines = recording()
    key = UUID("0192f0c1-a2b3-7c4d-8e5f-60718293a4b5")
    structlog.get_logger("app").info("x", number=1, share=0.5, flag=True, nothing=None, key=key)

    (line,) = lines()

    assert (line["number"], line["share"], line["flag"], line["nothing"]) == (1, 0.5, True, None)
    assert line["key"] == str(key)


def test_a_traceback_is_written_and_redacted(recording: Recording) -> None:
    lines = recording()

    def connect(url: str) -> None:
        message = f"cannot reach {url} with Bearer {JWS}"
        raise ConnectionError(message)

    try:
        connect("postgresql://app:CANARY@db/app")
    except ConnectionError:
        logging.getLogger("app").exception("failed")

    (line,) = lines()

    assert "in connect" in line["exception"]
    assert f"cannot reach postgresql://app:{REDACTED}@db/app with Bearer {REDACTED}" in line["exception"]
    assert "CANARY" not in json.dumps(line)
    assert JWS not in json.dumps(line)


def test_lines_in_the_console_format_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(), readable=True)

    structlog.get_logger("app.access").info("request", status=200, password="CANARY", note=f"Bearer {JWS}")
    text = capsys.readouterr().out

    assert "request" in text
    assert "status" in text
    assert "CANARY" not in text
    assert JWS not in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


@pytest.mark.parametrize(
    ("is_terminal", "no_color", "is_coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_only_a_terminal_gets_colours(
    monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool, no_color: str, is_coloured: bool
) -> None:
    output = io.StringIO()
    monkeypatch.setattr(output, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("NO_COLOR", no_color)
    configure(LogSettings(format="console"), readable=False)

    logging.getLogger("app.test").warning("a line")

    assert "a line" in output.getvalue()
    assert ("\x1b[" in output.getvalue()) is is_coloured


def test_a_traceback_in_the_console_format_is_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="console"), readable=False)

    logging.getLogger("app").error("failed", exc_info=ValueError(JWS))

    text = capsys.readouterr().out
    assert "ValueError" in text
    assert JWS not in text


@pytest.mark.parametrize(("chosen", "readable", "is_json"), [("json", True, True), ("console", False, False)])
def test_the_format_of_the_settings_has_precedence_over_the_environment(
    capsys: pytest.CaptureFixture[str], chosen: str, readable: bool, is_json: bool
) -> None:
    configure(LogSettings.model_validate({"format": chosen}), readable=readable)

    logging.getLogger("app").info("hello")

    assert capsys.readouterr().out.startswith("{") == is_json


def test_records_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(level="error"), readable=False)

    structlog.get_logger("app.access").warning("quiet")
    logging.getLogger("library").warning("quiet")
    structlog.get_logger("app.access").error("loud")
    logging.getLogger("library").error("loud")

    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["loud", "loud"]


def test_the_access_log_of_uvicorn_is_off_and_its_errors_are_logged(recording: Recording) -> None:
    logging.getLogger("uvicorn.access").handlers = [logging.StreamHandler()]
    lines = recording()

    logging.getLogger("uvicorn.access").error("GET /?token=CANARY")
    logging.getLogger("uvicorn.error").info("started")
    logging.getLogger("uvicorn.error").error("broken")
    logging.getLogger("sqlalchemy.engine").info("SELECT")
    logging.getLogger(f"{Pool.__module__}.{Pool.__qualname__}").info("Pool disposed.")

    assert [line["event"] for line in lines()] == ["broken"]


def test_configuring_twice_writes_each_record_once(recording: Recording) -> None:
    lines = recording()
    configure(LogSettings(), readable=False)

    logging.getLogger("app").info("once")

    assert len(lines()) == 1


def test_a_log_that_cannot_be_written_raises_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every write to this file fails, as on a full disk. Nothing is left to write when it is closed.
    with io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True) as full:
        monkeypatch.setattr("sys.stdout", full)
        configure(LogSettings(), readable=False)
        with pytest.raises(OSError, match="No space left"):
            full.write("x")

        access_log.write(logging.WARNING, {"route": "/livez"})
        logging.getLogger("app").warning("x")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_output_that_cannot_be_written_is_discarded_at_exit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The end of the block flushes again, and would raise "No space left on device".
    with Path("/dev/full").open("w") as full:
        full.write("a line")
        monkeypatch.setattr(sys, name, full)

        discard_unwritable_output()
