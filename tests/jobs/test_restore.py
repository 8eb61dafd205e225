"""Jobs after a restore from a backup, as docs/operations/backups.md describes it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.core.db.database import Database
from tests.jobs.conftest import eventually, quick_settings, statuses
from tests.jobs.test_processes import enqueue_link, worker_process
from tests.mail.conftest import Postbox
from tests.restoring import restoring


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(quick_settings(url).database)
    yield database
    await database.dispose()


async def test_jobs_that_waited_or_ran_during_the_backup_run_after_the_restore_and_ended_ones_do_not(
    template_url: str, clone_url: str, postbox: Postbox, tmp_path: Path
) -> None:
    is_sent = asyncio.Event()

    async def hold(_connection: object) -> None:
        is_sent.set()
        await asyncio.Event().wait()

    log = tmp_path / "log"
    async with restoring(template_url, clone_url, tmp_path) as restore:
        async with opened(clone_url) as database:
            await enqueue_link(database, clone_url)
            await work_off(database, clone_url, postbox, log)
            running = await enqueue_link(database, clone_url, "bob@example.org")
            postbox.before_reply = hold
            async with worker_process(clone_url, postbox.port, log) as process:
                await asyncio.wait_for(is_sent.wait(), 60)
                process.kill()
                await process.wait()
            waiting = await enqueue_link(database, clone_url, "cleo@example.org")
            assert await statuses(database) == ["succeeded", "doing", "todo"]
            restore.dump()
            await work_off(database, clone_url, postbox, log)
        restore.restore()
        restore.prepare()
        postbox.mails.clear()

        async with opened(restore.target) as copy:
            assert await statuses(copy) == ["succeeded", "doing", "todo"]
            await work_off(copy, restore.target, postbox, log)

    assert sorted(mail["Message-ID"] for mail in postbox.mails) == sorted(
        f"<{link}@example.com>" for link in (running, waiting)
    )


async def work_off(database: Database, url: str, postbox: Postbox, log: Path) -> None:
    """Run a worker until every job has succeeded."""
    postbox.before_reply = lambda _connection: None

    async def is_done() -> bool:
        return set(await statuses(database)) == {"succeeded"}

    async with worker_process(url, postbox.port, log):
        await eventually(is_done, within=60)
