"""The units of deploy/systemd in a machine that boots systemd: they start as they are, reload, stop, and start again after a crash."""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.dev.ports import free_port
from tests.conftest import KEY_SET, ROOT
from tests.core.db.test_tls import needs_tls
from tests.deploy.machine import Machine, booted, make_root, skip_unless_possible
from tests.factories import PASSWORD
from tests.tls import TlsServer, tls_server

pytestmark = [pytest.mark.deploy, needs_tls]

UNITS = ROOT / "deploy" / "systemd"
BOTH = ("app", "app-worker")
DATABASE_HOST = "db.internal"
EMAIL = "ada@example.com"
PORT = free_port()
# In tenths, as `systemd-analyze` takes it.
MOST_EXPOSED = 15


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    with tls_server(tmp_path_factory.mktemp("postgres"), host=DATABASE_HOST) as server:
        yield server


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, database: TlsServer) -> Iterator[Machine]:
    """A machine with a migrated database, an administrator, and both services running."""
    skip_unless_possible()
    root = make_root(ROOT / ".local" / "deploy" / "machine")
    directory = tmp_path_factory.mktemp("machine")
    with booted(root, dict(settings(directory, database))) as machine:
        machine.app("migrate")
        machine.app(f"users create-admin {EMAIL}", stdin=f"{PASSWORD}\n")
        machine.run("systemctl start app app-worker")
        yield machine


def settings(directory: Path, database: TlsServer) -> Iterator[tuple[Path, str]]:
    """Write the files of docs/deployment/systemd.md, for production. Yield each with its place in the machine."""
    etc = directory / "app"
    (etc / "secrets").mkdir(parents=True)
    etc.chmod(0o700)
    secrets = {
        "APP_DATABASE__URL": database.url(host=DATABASE_HOST, ssl="verify-full"),
        "APP_AUTH__SIGNING_KEYS": KEY_SET,
        "APP_MAIL__URL": "console:",
    }
    for name, value in secrets.items():
        (etc / "secrets" / name).write_text(value)
    environment = {
        "APP_SERVER__PUBLIC_URL": "https://api.example.com",
        "APP_SERVER__TRUSTED_PROXIES": "127.0.0.1/32",
        "APP_SERVER__WORKERS": "2",
        "APP_SERVER__PORT": str(PORT),
        "APP_MAIL__FROM_ADDRESS": "no-reply@example.com",
        "APP_MAIL__ALLOW_UNDELIVERED": "true",
        "APP_DATABASE__CA_FILE": "/etc/ssl/database.pem",
    }
    (etc / "environment").write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    (directory / "hosts").write_text(f"127.0.0.1 localhost {DATABASE_HOST}\n")
    (directory / "database.pem").write_bytes(database.authority.pem)
    yield etc, "/etc/app"
    yield directory / "hosts", "/etc/hosts"
    yield directory / "database.pem", "/etc/ssl/database.pem"
    for unit in sorted(UNITS.glob("*.service")):
        yield unit, f"/etc/systemd/system/{unit.name}"


def ask(
    path: str, form: dict[str, str] | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str]]:
    """Send a request as the proxy of the machine does."""
    body = urllib.parse.urlencode(form).encode() if form else None
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", body, headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def answer(path: str) -> int | None:
    """Return the status of a request on a new connection; None without an answer."""
    try:
        return ask(path)[0]
    except OSError:
        return None


def is_ready() -> bool:
    return answer("/readyz") == 200


def children(machine: Machine) -> set[str]:
    return set(machine.run(f"cat /proc/{machine.show('app', 'MainPID')}/task/*/children").split())


@pytest.fixture
def ready(machine: Machine) -> Machine:
    machine.run("systemctl start app app-worker")
    machine.until(is_ready)
    return machine


def test_both_services_start_confined_and_work(ready: Machine) -> None:
    for unit in BOTH:
        assert ready.show(unit, "SubState") == "running"
        status = ready.run(f"cat /proc/{ready.show(unit, 'MainPID')}/status")
        found = dict(re.findall(r"^(\w+):\t(.*)$", status, flags=re.MULTILINE))
        assert (found["CapEff"], found["CapBnd"], found["NoNewPrivs"], found["Seccomp"]) == (
            "0" * 16,
            "0" * 16,
            "1",
            "2",
        )
        assert "0" not in found["Uid"].split()
    assert ask("/readyz") == (200, {"status": "ok"})
    # Hashing and the libraries in C work without memory that is writable and executable.
    code, tokens = ask("/api/v1/auth/token", {"grant_type": "password", "username": EMAIL, "password": PASSWORD})
    assert code == 200
    assert ask("/api/v1/users/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})[1]["email"] == EMAIL


def test_the_health_checks_find_both_services(ready: Machine) -> None:
    assert ready.app("healthcheck") == f"the server on port {PORT} of 127.0.0.1 is ready"
    assert " reported " in ready.app("healthcheck --worker")


@pytest.mark.parametrize("unit", BOTH)
def test_the_running_service_is_hardly_exposed(ready: Machine, unit: str) -> None:
    ready.run(f"systemd-analyze security --threshold={MOST_EXPOSED} --no-pager {unit}")


def test_the_secrets_are_copies_that_only_the_service_reads(ready: Machine) -> None:
    pid = ready.show("app", "MainPID")
    environment = ready.run(f"tr '\\0' '\\n' < /proc/{pid}/environ")

    assert "APP_SECRETS_DIR=/run/credentials/app.service" in environment
    assert "postgresql://" not in environment
    user = ready.run(f"stat --format=%u /proc/{pid}")
    seen = "cat /etc/app/secrets/APP_DATABASE__URL"
    assert ready.attempt(f"setpriv --reuid={user} --clear-groups {seen}").returncode != 0


def test_a_reload_replaces_the_workers_while_the_service_answers(ready: Machine) -> None:
    before, main = children(ready), ready.show("app", "MainPID")

    ready.run("systemctl reload app")

    ready.until(lambda: not before & children(ready) and ready.show("app", "StatusText") == "serving")
    assert len(children(ready)) == 2
    assert is_ready()
    assert (ready.show("app", "MainPID"), ready.show("app", "ActiveState")) == (main, "active")
    ready.run("systemctl reload app-worker || true")
    assert ready.show("app-worker", "SubState") == "running"


def test_stop_drains_and_ends_in_seconds_with_success(ready: Machine) -> None:
    began = time.monotonic()
    ready.run("systemctl stop --no-block app")
    answers = []
    while ready.show("app", "ActiveState") != "inactive":
        answers.append((time.monotonic() - began, answer("/livez")))
        time.sleep(0.1)
    took = time.monotonic() - began

    # Proxies notice within five seconds that it is not ready. It serves them until then.
    assert {code for moment, code in answers if moment < 4.5} == {200}
    assert 5 <= took < 10
    assert (ready.show("app", "Result"), ready.show("app", "ExecMainStatus")) == ("success", "0")
    assert ready.journal("app").count('"worker killed') == 0


def test_a_job_worker_stops_in_seconds_with_success(ready: Machine) -> None:
    began = time.monotonic()
    ready.run("systemctl stop app-worker")

    assert time.monotonic() - began < 5
    assert (ready.show("app-worker", "Result"), ready.show("app-worker", "ExecMainStatus")) == ("success", "0")


@pytest.mark.parametrize("unit", BOTH)
def test_a_service_whose_main_process_is_killed_is_started_again(ready: Machine, unit: str) -> None:
    main, restarts = ready.show(unit, "MainPID"), int(ready.show(unit, "NRestarts"))

    ready.run(f"systemctl kill --signal=KILL --kill-whom=main {unit}")

    ready.until(
        lambda: ready.show(unit, "NRestarts") == str(restarts + 1) and ready.show(unit, "SubState") == "running"
    )
    assert ready.show(unit, "MainPID") not in {main, "0"}
    ready.until(is_ready)
    assert "reported" in ready.app("healthcheck --worker")


# Replaces the credentials of the service: the keys come from elsewhere.
OTHER_KEYS = """mkdir -p /run/systemd/system/app.service.d && cat > /run/systemd/system/app.service.d/keys.conf <<'END'
[Service]
LoadCredential=
LoadCredential=APP_DATABASE__URL:/etc/app/secrets/APP_DATABASE__URL
LoadCredential=APP_MAIL__URL:/etc/app/secrets/APP_MAIL__URL
Environment={}
END
systemctl daemon-reload"""


@pytest.fixture
def without_keys(ready: Machine) -> Iterator[Machine]:
    """A machine whose service is about to start without a credential for the keys."""
    ready.run("systemctl stop app")
    yield ready
    ready.run("systemctl stop app; rm -r /run/systemd/system/app.service.d && systemctl daemon-reload")
    ready.run("systemctl reset-failed app || true")


def test_a_reload_that_fails_is_in_the_status_and_the_old_workers_serve(without_keys: Machine) -> None:
    machine = without_keys
    # A file can be damaged while the service runs, other than a credential.
    machine.run("install -D -m 644 /etc/app/secrets/APP_AUTH__SIGNING_KEYS /run/keys/keys.json")
    machine.run(OTHER_KEYS.format("APP_AUTH__SIGNING_KEYS_FILE=/run/keys/keys.json"))
    machine.run("systemctl start app")
    before, began = children(machine), time.time()

    machine.run("echo damaged > /run/keys/keys.json && systemctl reload app")

    machine.until(lambda: machine.show("app", "StatusText").startswith("serving; the reload failed"))
    assert children(machine) == before
    assert is_ready()
    assert (machine.show("app", "ActiveState"), machine.show("app", "Result")) == ("active", "success")
    assert "worker not renewed; the old workers continue" in machine.journal("app", since=began)


def test_a_start_without_keys_fails_with_a_sentence(without_keys: Machine) -> None:
    without_keys.run(OTHER_KEYS.format("KEYS=none"))
    began = time.time()

    assert without_keys.attempt("systemctl start app").returncode != 0

    journal = without_keys.journal("app", since=began)
    assert "app: The settings cannot be used:\n  - APP_AUTH__SIGNING_KEYS" in journal
    assert "Traceback" not in journal
