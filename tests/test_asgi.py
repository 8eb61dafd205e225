"""`app.asgi:app` as a server imports it, and the sentence for those who look for the application in `app.main`."""

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
    """Import `app.asgi` anew with these settings, and give its application."""

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
        # Made once, and kept.
        assert module.app is module.app
        app: FastAPI = module.app
        return app

    return run


async def test_the_application_is_made_from_the_settings(imported: Importing, clone_url: str) -> None:
    async with running(imported(clone_url)) as client:
        assert (await client.get("/readyz")).status_code == 200


async def test_the_log_is_written_as_under_the_own_server(
    imported: Importing, clone_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(imported(clone_url)) as client:
        await client.get("/api/v1/users/me", headers={"X-Request-ID": "under-any-server"})

    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [access_line] = [record for record in records if record["event"] == "request"]
    assert (access_line["request_id"], access_line["status"]) == ("under-any-server", 401)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"APP_AUTH__BCRYPT_COST": "many"}, "APP_AUTH__BCRYPT_COST"),
        ({"APP_AUTH__SIGNING_KEYS": "{}"}, "APP_AUTH__SIGNING_KEYS"),
        ({"APP_AUTH__BREACHED_PASSWORDS_FILE": "/nowhere/passwords"}, "/nowhere/passwords"),
        ({"DATABASE_URL": f"{NOWHERE}?ssl=verify-full", "APP_DATABASE__CA_FILE": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"OTEL_TRACES_EXPORTER": "pigeon"}, "OTEL_TRACES_EXPORTER"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_used_are_told_as_by_the_own_server(
    imported: Importing,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    said: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        imported(**environment)
    under_any_server = capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["app", "serve"])
    with pytest.raises(SystemExit):
        cli.main()

    # uvicorn and gunicorn give up at this code, and would start the process again at others.
    assert ended.value.code == 3
    assert under_any_server == capsys.readouterr().err
    assert said in under_any_server


async def test_only_one_process_exposes_metrics_on_a_port_and_the_other_says_so(
    imported: Importing, clone_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(free_port())
    first, second = (imported(clone_url, APP_TELEMETRY__METRICS_PORT=port) for _ in range(2))

    async with running(first), running(second) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await scrape(int(port))).values("database_pool_size", pool="read").keys() == {"0"}

    said = capsys.readouterr().out
    assert said.count("this process exposes no metrics") == 1
    assert f"port {port} is in use" in said


async def test_the_metrics_of_a_process_end_with_it(imported: Importing, clone_url: str) -> None:
    port = str(free_port())
    for _ in range(2):
        async with running(imported(clone_url, APP_TELEMETRY__METRICS_PORT=port)):
            assert (await scrape(int(port))).text


def told(capsys: pytest.CaptureFixture[str]) -> None:
    [sentence] = capsys.readouterr().err.splitlines()
    assert "`app serve`" in sentence
    assert "`uvicorn app.asgi:app`" in sentence


def test_whoever_looks_for_the_application_in_main_is_told_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        attrgetter("app")(main)

    assert ended.value.code == 3
    told(capsys)


def test_main_run_as_a_program_says_what_to_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "app.main")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("app.main", run_name="__main__")

    assert ended.value.code == 3
    told(capsys)


def test_both_modules_lack_other_names_as_any_module_does() -> None:
    assert not hasattr(main, "application")
    assert not hasattr(asgi, "application")


def test_asgi_can_be_imported_without_settings() -> None:
    program = "import app.asgi"
    done = subprocess.run([sys.executable, "-c", program], env={}, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_uvicorn_pointed_at_main_prints_the_sentence_alone() -> None:
    uvicorn = Path(sys.executable).with_name("uvicorn")
    done = subprocess.run([uvicorn, "app.main:app", "--port", "0"], capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "`uvicorn app.asgi:app`" in done.stderr
