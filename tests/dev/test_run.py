"""``make run``: its welcome text, its errors and its cleanup."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.auth.settings import AuthSettings
from app.core.security.keys import generate_key_set, load_key_ring
from app.dev import run as make_run
from app.dev.ports import free_port
from app.dev.postgres.cluster import Cluster
from tests.conftest import make_settings

PROGRAM = """
import sys
from pathlib import Path
from app.dev import run
run.LOCAL = Path(sys.argv[1])
sys.exit(run.run())
"""
APPLICATION_VARIABLES = ("APP_", "DATABASE_URL", "PORT", "PG_BINDIR")


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A directory for the files of a run, and an environment that sets only a free port."""
    for name in os.environ:
        if name.startswith(APPLICATION_VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setattr(make_run, "LOCAL", tmp_path / "local")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path / "local"
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Running:
    """``make run`` in a separate process, read up to the last line of its welcome text."""

    def __init__(self, local: Path) -> None:
        command = [sys.executable, "-c", PROGRAM, str(local)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        self.welcome = ""
        while not re.search(r"users/me|create-admin", self.welcome):
            line = self.process.stdout.readline()
            assert line, self.welcome
            self.welcome += line

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode


def test_the_commands_of_the_welcome_text_work_and_ctrl_c_cleans_up(local: Path) -> None:
    running = Running(local)

    pasted = subprocess.run(
        ["sh", "-c", running.welcome[running.welcome.index("    TOKEN=") :]],
        capture_output=True,
        text=True,
        check=False,
    )

    assert '"email":"admin@example.com"' in pasted.stdout, pasted
    assert running.stop(signal.SIGINT) == 0
    assert list(local.glob("postgres/*/data/postmaster.pid")) == []
    assert not (local / "database-url").exists()


def test_the_password_is_shown_only_once_and_the_data_survives_a_kill(local: Path) -> None:
    first = Running(local)
    password = re.search(r"password +(\S+)", first.welcome)
    first.stop(signal.SIGKILL)

    second = Running(local)

    assert password
    assert "password  " not in second.welcome
    assert 'make app ARGS="users create-admin you@example.com"' in second.welcome
    assert second.stop(signal.SIGTERM) == 0
    stored = [path for path in local.glob("*") if path.is_file() and password[1] in path.read_text()]
    assert stored == []


@pytest.mark.parametrize(("url", "is_shown"), [("file:///elsewhere", True), ("console:", False)])
def test_the_mails_page_is_named_where_it_exists(url: str, is_shown: bool) -> None:
    settings = make_settings("postgresql://x/x", environment="local", mail={"url": url})

    assert ("/local/mails" in make_run._welcome_text(settings, "18.1", None, is_embedded=False)) == is_shown


def test_only_the_owner_can_read_the_signing_keys(local: Path) -> None:
    local.mkdir()

    keys = make_run._signing_keys_file()

    assert keys.stat().st_mode & 0o077 == 0
    assert keys.read_text() == make_run._signing_keys_file().read_text()


def test_a_key_file_of_an_older_clone_gets_a_seal_key(local: Path) -> None:
    local.mkdir()
    keys = json.loads(generate_key_set())["keys"]
    file = local / "keys.json"
    file.write_text(json.dumps({"keys": keys}))
    settings = AuthSettings(signing_keys_file=file)

    for _ in range(2):
        make_run._check_keys(settings)

    assert json.loads(file.read_text())["keys"] == keys
    assert set(load_key_ring(settings).seal_keys) == {1}


def test_a_key_file_of_the_developer_is_not_changed(local: Path, tmp_path: Path) -> None:
    local.mkdir()
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": json.loads(generate_key_set())["keys"]}))
    before = file.read_bytes()

    make_run._check_keys(AuthSettings(signing_keys_file=file))

    assert file.read_bytes() == before


def test_an_interrupted_change_of_the_keys_is_reported(local: Path, capfd: pytest.CaptureFixture[str]) -> None:
    local.mkdir()
    (local / "keys.json").write_text(json.dumps({"keys": json.loads(generate_key_set())["keys"]}))
    (local / "keys.json.new").write_text("")

    assert f"if it was interrupted, remove {local / 'keys.json.new'}" in refusal(capfd)
    assert not (local / "postgres").exists()


def refusal(capfd: pytest.CaptureFixture[str]) -> str:
    assert make_run.run() == 1
    output, sentence = capfd.readouterr()
    assert output == ""
    assert "Traceback" not in sentence
    return sentence.strip()


def test_a_port_in_use_is_reported_with_its_owner_before_the_database_starts(
    local: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))

        sentence = refusal(capfd)

    assert re.search(
        rf"port {port} is in use by .+ \(pid {os.getpid()}\); set PORT to another port, for example", sentence
    )
    assert not (local / "postgres").exists()


def test_a_second_run_in_one_clone_is_refused(local: Path, capfd: pytest.CaptureFixture[str]) -> None:
    local.mkdir()
    with (local / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()

        sentence = refusal(capfd)

    assert sentence == "The application is already running in this directory (pid 4711). Stop it first."


def test_an_unreachable_database_is_named_without_its_password(
    local: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setenv("DATABASE_URL", f"postgresql://somebody:hunter2hunter2@127.0.0.1:{port}/app")

    sentence = refusal(capfd)

    assert f"DATABASE_URL: cannot connect to PostgreSQL at 127.0.0.1:{port}" in sentence
    assert "hunter2" not in sentence
    assert not (local / "postgres").exists()


@pytest.fixture
def wrong_url(directory: Path, part: str, wrong: str) -> Iterator[str]:
    with Cluster(directory, durable=False) as cluster:
        yield re.sub(part, wrong, cluster.url())


@pytest.mark.parametrize(
    ("part", "wrong", "reason"),
    [
        (r":[^:@]+@", ":hunter2hunter2@", "password authentication failed"),
        (r"/postgres$", "/nothing_here", 'database "nothing_here" does not exist'),
    ],
    ids=["wrong password", "no such database"],
)
@pytest.mark.usefixtures("local")
def test_a_wrong_database_url_is_explained_without_its_password(
    wrong_url: str, reason: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", wrong_url)

    sentence = refusal(capfd)

    assert reason in sentence
    assert "hunter2" not in sentence


def test_invalid_settings_are_reported_before_the_database_starts(
    local: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APP_AUTH__BCRYPT_COST", "99")

    assert "APP_AUTH__BCRYPT_COST" in refusal(capfd)
    assert not (local / "postgres").exists()


def test_a_file_with_variables_is_not_read_and_says_so(
    local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").write_text("APP_LOG__LEVEL=debug")
    monkeypatch.setattr(make_run, "ROOT", tmp_path)
    local.mkdir()
    (local / "keys.json").write_text("{}")

    assert refusal(capfd).startswith(".env is not read. To use it, load it into the shell: set -a; . ./.env; set +a\n")


def test_a_schema_of_another_branch_leads_to_reset(
    local: Path, directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    local.mkdir()
    directory.rename(local / "postgres")
    with make_run.database(None) as url, psycopg.connect(url.replace("+asyncpg", "")) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text)")
        connection.execute("INSERT INTO alembic_version VALUES ('20991231_future')")

    sentence = refusal(capfd)

    assert "20991231_future, which belongs to a newer release" in sentence
    assert sentence.endswith("Switch to the branch with that migration, or delete the data: make reset")


def test_a_database_that_has_ended_is_not_taken_for_a_running_one(local: Path) -> None:
    local.mkdir()
    (local / "database-url").write_text(f"postgresql+asyncpg://postgres:x@127.0.0.1:{free_port()}/app")

    assert make_run._running_database() is None


def test_invalid_keys_are_reported_before_the_database_starts(local: Path, capfd: pytest.CaptureFixture[str]) -> None:
    local.mkdir()
    (local / "keys.json").write_text("{}")

    assert "is not a private key set" in refusal(capfd)
    assert not (local / "postgres").exists()


def test_a_directory_that_cannot_be_written_is_named(local: Path, capfd: pytest.CaptureFixture[str]) -> None:
    local.write_text("a file where the directory belongs")

    assert refusal(capfd) == f"The application cannot start: File exists ({local})."
