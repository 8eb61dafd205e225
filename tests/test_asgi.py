"""`app.asgi:app` as a server imports it, and the error message for a server that looks for it in `app.main`."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
from fastapi import FastAPI

from app import asgi, cli, main
from app.dev.ports import free_port
from tests.conftest import KEY_SET, running
from tests.core.scrape import scrape

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
pytestmark = pytest.mark.usefixtures("restored_logging")

type Importing = Callable[..., FastAPI]


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Importing:
    """Returns a function that imports `app.asgi` again with these settings, and returns its application."""

    def run(url: str = NOWHERE, **environment: str) -> FastAPI:
        given = {
            "APP_ENVIRONMENT": "test",
            "APP_AUTH__SIGNING_KEYS": KEY_SET,
            "APP_AUTH__BCRYPT_COST": "4",
            "DATABASE_URL": url,
            **environment,
        }
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delitem(sys.modules, "app.asgi", raising=False)
        module = import_module("app.asgi")
        # The module creates it once.
        assert module.app is module.app
        app: FastAPI = module.app
        return app

    return run


async def test_the_application_uses_the_settings(imported: Importing, clone_url: str) -> None:
    async with running(imported(clone_url)) as client:
        assert (await client.get("/readyz")).status_code == 200


async def test_the_log_is_the_same_as_with_app_serve(
    imported: Importing, clone_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(imported(clone_url)) as client:
        await client.get("/api/v1/users/me", headers={"X-Request-ID": "under-any-server"})

    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [access_line] = [record for record in records if record["event"] == "request"]
    assert (access_line["request_id"], access_line["status"]) == ("under-any-server", 401)


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"APP_AUTH__BCRYPT_COST": "many"}, "APP_AUTH__BCRYPT_COST"),
        ({"APP_AUTH__SIGNING_KEYS": "{}"}, "APP_AUTH__SIGNING_KEYS"),
        ({"APP_AUTH__BREACHED_PASSWORDS_FILE": "/nowhere/passwords"}, "/nowhere/passwords"),
        ({"DATABASE_URL": f"{NOWHERE}?ssl=verify-full", "APP_DATABASE__CA_FILE": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"OTEL_TRACES_EXPORTER": "pigeon"}, "OTEL_TRACES_EXPORTER"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_settings_have_the_same_error_message_as_with_app_serve(
    imported: Importing,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    text: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        imported(**environment)
    message_of_asgi = capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["app", "serve"])
    with pytest.raises(SystemExit):
        cli.main()

    # uvicorn and gunicorn stop at this exit code. At other codes, they would start the process again.
    assert ended.value.code == 3
    assert message_of_asgi == capsys.readouterr().err
    assert text in message_of_asgi


async def test_a_second_process_logs_that_it_cannot_expose_metrics_on_the_port(
    imported: Importing, clone_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(free_port())
    first, second = (imported(clone_url, APP_TELEMETRY__METRICS_PORT=port) for _ in range(2))

    async with running(first), running(second) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await scrape(int(port))).values("database_pool_size", pool="read").keys() == {"0"}

    output = capsys.readouterr().out
    assert output.count("metrics not exposed") == 1
    assert f"port {port} is in use" in output


async def test_the_metrics_port_is_free_after_the_application_stops(imported: Importing, clone_url: str) -> None:
    port = str(free_port())
    for _ in range(2):
        async with running(imported(clone_url, APP_TELEMETRY__METRICS_PORT=port)):
            assert (await scrape(int(port))).text


def assert_message(capsys: pytest.CaptureFixture[str]) -> None:
    [message] = capsys.readouterr().err.splitlines()
    assert "`app serve`" in message
    assert "`uvicorn app.asgi:app`" in message


def test_app_in_main_is_an_error_that_names_app_asgi(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        attrgetter("app")(main)

    assert ended.value.code == 3
    assert_message(capsys)


def test_running_main_is_an_error_that_names_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "app.main")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("app.main", run_name="__main__")

    assert ended.value.code == 3
    assert_message(capsys)


def test_both_modules_have_no_other_attributes() -> None:
    assert not hasattr(main, "application")
    assert not hasattr(asgi, "application")


def test_asgi_can_be_imported_without_settings() -> None:
    program = "import app.asgi"
    done = subprocess.run([sys.executable, "-c", program], env={}, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_uvicorn_with_app_main_prints_only_the_message() -> None:
    uvicorn = Path(sys.executable).with_name("uvicorn")
    done = subprocess.run([uvicorn, "app.main:app", "--port", "0"], capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "`uvicorn app.asgi:app`" in done.stderr
