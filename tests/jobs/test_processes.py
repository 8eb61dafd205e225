"""Worker processes and the PostgreSQL server are killed, stopped and restarted while jobs run."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import SecretStr

from app import worker
from app.auth.settings import AuthSettings
from app.core.config import DatabaseSettings
from app.core.db.database import Database
from app.core.security.keys import load_key_ring
from app.dev.ports import free_port
from app.dev.postgres.cluster import Cluster
from app.jobs.queue import Work, enqueue
from app.jobs.worker import JobWorker
from app.main import create_app
from app.migrations import runner
from app.users import links
from app.users.jobs import mail_link
from tests.conftest import KEY_SET, make_settings, running
from tests.factories import make_user
from tests.jobs.conftest import QUICK, Records, eventually, make_work, quick_settings, rows, statuses
from tests.mail.conftest import Postbox


@asynccontextmanager
async def worker_process(url: str, smtp_port: int, log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `app worker` in a process of its own."""
    settings = {
        "APP_ENVIRONMENT": "test",
        "APP_AUTH__SIGNING_KEYS": KEY_SET,
        "APP_MAIL__URL": f"smtp://127.0.0.1:{smtp_port}",
        "APP_MAIL__FROM_ADDRESS": "app@example.com",
        "DATABASE_URL": url,
        **{f"APP_JOBS__{name.upper()}": value for name, value in QUICK.items()},
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "DATABASE_URL"))}
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", "worker"), stdout=output, stderr=output, env=inherited | settings
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def enqueue_link(database: Database, url: str, email: str = "ada@example.org") -> UUID:
    """Insert what creating an account inserts: a user, a link and the job that mails it, in one transaction."""
    async with database.begin() as session:
        user = await make_user(session, email=email, full_name="Ada")
        link_id = await links.create(
            session, load_key_ring(make_settings(url).of(AuthSettings)), user.id, "set_password"
        )
        await enqueue(session, mail_link, link_id)
    return link_id


@pytest.fixture
async def separate_clone(clone_url: str) -> AsyncIterator[Database]:
    """A database for tests that create accounts, which the other tests must not see."""
    database = Database(quick_settings(clone_url).database)
    yield database
    await database.dispose()


async def test_a_mail_is_not_lost_when_the_worker_is_killed_while_it_sends(
    separate_clone: Database, clone_url: str, postbox: Postbox, tmp_path: Path
) -> None:
    is_sent = asyncio.Event()

    async def hold(_connection: object) -> None:
        is_sent.set()
        await asyncio.Event().wait()

    postbox.before_reply = hold
    link_id = await enqueue_link(separate_clone, clone_url)
    async with worker_process(clone_url, postbox.port, tmp_path / "log") as first:
        await asyncio.wait_for(is_sent.wait(), 60)
        first.kill()
        await first.wait()
    assert await statuses(separate_clone) == ["doing"]
    postbox.before_reply = lambda _connection: None

    async with worker_process(clone_url, postbox.port, tmp_path / "log"):
        await eventually(lambda: is_done(separate_clone), within=60)

    assert [mail["Message-ID"] for mail in postbox.mails] == [f"<{link_id}@example.com>"] * 2


async def is_done(database: Database) -> bool:
    return await statuses(database) == ["succeeded"]


async def test_a_worker_that_receives_sigterm_finishes_its_mail(
    separate_clone: Database, clone_url: str, postbox: Postbox, tmp_path: Path
) -> None:
    is_sent, may_go_on = asyncio.Event(), asyncio.Event()

    async def hold(_connection: object) -> None:
        is_sent.set()
        await may_go_on.wait()

    postbox.before_reply = hold
    await enqueue_link(separate_clone, clone_url)
    log = tmp_path / "log"
    async with worker_process(clone_url, postbox.port, log) as process:
        await asyncio.wait_for(is_sent.wait(), 60)
        process.send_signal(signal.SIGTERM)
        may_go_on.set()
        code = await asyncio.wait_for(process.wait(), 30)

    assert code == 0, log.read_text()
    assert await statuses(separate_clone) == ["succeeded"]
    assert await rows(separate_clone, "SELECT id FROM procrastinate_workers") == []
    assert len(postbox.mails) == 1
    assert "Traceback" not in log.read_text()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A migrated server of the test's own, on a fixed port, so that it can be restarted."""
    cluster = Cluster(tmp_path / "postgres", durable=False, port=free_port())
    cluster.start()
    try:
        await runner.upgrade(DatabaseSettings(url=SecretStr(cluster.url())))
        yield cluster
    finally:
        cluster.stop()


async def test_a_worker_survives_a_restart_of_the_database(cluster: Cluster, logged: Records) -> None:
    runs: list[str] = []
    is_running, may_end = asyncio.Event(), asyncio.Event()

    async def job(work: Work, name: str) -> None:  # noqa: ARG001  # A job takes its work.
        runs.append(name)
        is_running.set()
        await may_end.wait()

    settings = make_settings(cluster.url(), jobs=QUICK, database={"connect_timeout": "500ms", "pool_wait": "500ms"})
    database = Database(settings.database)
    async with database.begin() as session:
        await enqueue(session, job, "running")
    async with JobWorker(make_work(settings, database), [job]).running():
        await is_running.wait()
        cluster.stop()
        may_end.set()
        await eventually(lambda: asyncio.sleep(0, bool(logged.about("database is unavailable"))), within=60)
        cluster.start()
        async with database.begin() as session:
            await enqueue(session, job, "later")
        await eventually(lambda: all_done(database), within=60)
    await database.dispose()

    assert sorted(runs) == ["later", "running", "running"]
    assert len(logged.about("database is unavailable")) == 1
    # Housekeeping that fails twice in a row is logged as an error. The number of its runs during the outage varies.
    errors = [record for record in logged.records if record.levelname == "ERROR"]
    assert [record for record in errors if record.name != "app.jobs.housekeeping"] == []


async def all_done(database: Database) -> bool:
    return await statuses(database) == ["succeeded", "succeeded"]


async def test_the_web_process_runs_jobs_if_the_setting_is_on(clone: Database, queue_url: str) -> None:
    settings = make_settings(queue_url, jobs={**QUICK, "in_process": True}, mail={"url": "console:"})
    async with clone.begin() as session:
        await enqueue(session, mail_link, UUID(int=1))

    async with running(create_app(settings, clone)):
        await eventually(lambda: is_done(clone))


async def test_the_web_process_runs_no_jobs_if_the_setting_is_off(clone: Database, queue_url: str) -> None:
    settings = make_settings(queue_url, jobs=QUICK)

    async with running(create_app(settings, clone)):
        names = {task.get_name() for task in asyncio.all_tasks()}

    assert not names & {"jobs", "housekeeping"}


@pytest.mark.usefixtures("restored_logging", "clone")
@pytest.mark.parametrize("exporter", ["none", "console"])
def test_the_worker_shuts_down_cleanly_on_sigterm(
    queue_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, exporter: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    default = signal.getsignal(signal.SIGTERM)

    def end() -> None:
        # Wait for the handler of the worker: before that, SIGTERM would end the test run.
        while signal.getsignal(signal.SIGTERM) == default:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    worker.work(make_settings(queue_url, jobs=QUICK, telemetry={"metrics_port": 0}))
    thread.join()

    output = capsys.readouterr().out
    assert "worker stopped" in output
    assert "metrics port opened" in output
