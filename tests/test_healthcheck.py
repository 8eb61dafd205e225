"""`app healthcheck`: asks the server that the settings describe, and says in one line what it found."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import __main__ as program
from app import healthcheck
from app.dev.ports import free_port
from app.settings import load_settings
from tests.servers import real_server
from tests.test_cli import Command
from tests.test_cli import app as app  # noqa: PLC0414  # The fixture.

READY = b'{"status": "ok"}'
COMMAND = (sys.executable, "-m", "app", "healthcheck")


def response(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def answering(answer: bytes | None, host: str = "127.0.0.1") -> Iterator[int]:
    """Give each client this answer, or none until the block ends. Yields the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_over = threading.Event()
    with socket.create_server((host, 0), family=family) as listener:

        def serve() -> None:
            while not is_over.is_set():
                client, _ = listener.accept()
                with client:
                    client.recv(4096)
                    if answer is None:
                        is_over.wait(10)
                    else:
                        client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        port: int = listener.getsockname()[1]
        try:
            yield port
        finally:
            is_over.set()
            socket.create_connection((host, port)).close()
            thread.join()


def check(capsys: pytest.CaptureFixture[str], **environment: str) -> tuple[int, str]:
    """Return the exit code and the only line."""
    code = healthcheck.run(environment)
    captured = capsys.readouterr()
    assert (captured.out == "") == bool(code)
    (line,) = (captured.out + captured.err).splitlines()
    return code, line


@pytest.mark.parametrize(
    ("listening", "setting"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", "0.0.0.0"),  # noqa: S104  # That is the case.
        ("::", "::"),
        ("::1", "::1"),
    ],
)
def test_a_ready_server_is_healthy_on_each_address(
    capsys: pytest.CaptureFixture[str], listening: str, setting: str
) -> None:
    with answering(response("200 OK", READY), listening) as port:
        code, line = check(capsys, APP_SERVER__HOST=setting, PORT=str(port))

    assert code == 0
    assert line.endswith(" is ready")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            response("503 Service Unavailable", b'{"detail": "Not ready: draining."}'),
            "status 503: Not ready: draining.",
        ),
        (response("200 OK", b'{"status": "odd", "detail": "a\\r\\n\\u001bb"}'), "status 200: ab"),
        (response("200 OK", b"<html>"), "another program may use the port"),
        (response("200 OK", b"[]"), "another program may use the port"),
        (response("200 OK", b"[" * 60_000), "another program may use the port"),
        (response("200 OK", b'{"status": "ok"}' + b" " * 70_000), "is ready"),
        (response("200 OK", b'"' + b"x" * 70_000 + b'"'), "another program may use the port"),
        (b"SSH-2.0-OpenSSH_9\r\n", "another program may use the port"),
        (b"", "cannot be reached: Remote end closed connection without response"),
    ],
)
def test_the_line_says_what_a_server_answered(capsys: pytest.CaptureFixture[str], answer: bytes, sentence: str) -> None:
    with answering(answer) as port:
        code, line = check(capsys, PORT=str(port))

    assert code == (sentence != "is ready")
    assert line.endswith(sentence)


def test_a_server_that_does_not_answer_is_unhealthy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healthcheck, "_TIMEOUT", 0.1)
    with answering(None) as port:
        code, line = check(capsys, PORT=str(port))

    assert (code, line) == (1, f"app: the server on port {port} of 127.0.0.1 did not answer within 0.1 s")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"PORT": "0"}, "the port is 0, so the server chose a free one; set PORT to a port that can be checked"),
        ({"PORT": "many"}, "PORT: write a number between 1 and 65535"),
        ({"PORT": "70000"}, "PORT: write a number between 1 and 65535"),
        ({"APP_SERVER": "{"}, "APP_SERVER: write a JSON object"),
        ({"APP_SERVER": "[1]"}, "APP_SERVER: write a JSON object"),
        ({"PORT": "1"}, "the server on port 1 of 127.0.0.1 cannot be reached: Connection refused"),
    ],
)
def test_settings_that_lead_to_no_server_are_a_sentence(
    capsys: pytest.CaptureFixture[str], environment: dict[str, str], sentence: str
) -> None:
    assert check(capsys, **environment) == (1, f"app: {sentence}")


def test_a_host_that_does_not_exist_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = check(capsys, APP_SERVER__HOST="nowhere.invalid")

    assert code == 1
    assert line.startswith("app: the server on port 8000 of nowhere.invalid cannot be reached: ")


def test_a_secret_that_is_no_text_is_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "app_server__port").write_bytes(b"\xff")

    assert check(capsys, APP_SECRETS_DIR=str(tmp_path)) == (
        1,
        "app: APP_SECRETS_DIR: a file in it cannot be read as UTF-8 text",
    )


@pytest.mark.parametrize(
    ("environment", "files"),
    [
        ({}, {}),
        ({"PORT": "81"}, {}),
        ({"PORT": ""}, {}),
        ({"APP_SERVER__PORT": "82", "PORT": "81"}, {}),
        ({"app_server__host": "::1", "App_Server__Port": "83"}, {}),
        ({"APP_SERVER": '{"host": "0.0.0.0", "port": 84}'}, {}),
        ({"APP_SERVER": '{"host": "0.0.0.0", "port": 84}', "APP_SERVER__PORT": "85"}, {}),
        ({"APP_SERVER": '{"port": 84}', "PORT": "86"}, {}),
        ({}, {"APP_SERVER__PORT": "87\n", "app_server__host": "::"}),
        ({"PORT": "88"}, {"APP_SERVER__PORT": "87"}),
        ({"APP_SERVER__PORT": "89"}, {"APP_SERVER__PORT": "87"}),
        ({}, {"APP_SERVER": '{"port": 90}'}),
    ],
)
def test_the_address_is_that_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], files: dict[str, str]
) -> None:
    for name in [name for name in os.environ if name.upper().startswith(("APP_", "PORT", "DATABASE_URL"))]:
        monkeypatch.delenv(name)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    given = environment | {"APP_SECRETS_DIR": str(tmp_path)}
    for name, value in (given | {"APP_ENVIRONMENT": "test", "DATABASE_URL": "postgresql://a@127.0.0.1/b"}).items():
        monkeypatch.setenv(name, value)

    server = load_settings().server

    found = healthcheck._settings(given)
    assert (found.get("HOST", "127.0.0.1"), int(str(found.get("PORT", 8000)))) == (server.host, server.port)


async def test_a_real_server_below_a_path_is_healthy_until_it_stops(clone_url: str) -> None:
    async with real_server(clone_url, APP_SERVER__PUBLIC_URL="https://example.com/bed") as server:
        environment = {"PORT": server.base_url.rpartition(":")[2]}
        ready = await asyncio.to_thread(run_process, environment)
        await server.stop()
        gone = await asyncio.to_thread(run_process, environment)

    assert (ready.returncode, ready.stderr) == (0, "")
    assert (gone.returncode, gone.stdout) == (1, "")


def run_process(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False)


def test_the_check_needs_no_other_settings_and_imports_little() -> None:
    program = "import sys; from app.__main__ import main; sys.argv = ['app', 'healthcheck']\ntry: main()\n"
    program += "finally: print(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", f"import json; {program}"],
        env={"PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert {"pydantic", "sqlalchemy", "typer", "asyncio"}.isdisjoint(json.loads(ended.stdout))


def test_the_short_way_ends_with_the_exit_code_of_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["app", "healthcheck"])
    monkeypatch.setenv("PORT", "1")

    with pytest.raises(SystemExit) as ended:
        program.main()

    assert ended.value.code == 1


def test_the_command_line_lists_the_check_and_runs_it(app: Command) -> None:
    with answering(response("200 OK", READY)) as port:
        assert app("healthcheck", PORT=str(port))[0] == 0
    assert app("healthcheck", PORT="1")[0] == 1
    assert "healthcheck" in app("--help")[1]
