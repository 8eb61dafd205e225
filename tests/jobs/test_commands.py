"""The commands `app jobs failed` and `app jobs retry`."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from app.cli import cli
from app.core.db.database import Database
from app.core.errors import NotFoundError, PermanentError
from app.jobs.queue import Work, enqueue
from tests.conftest import KEY_SET
from tests.jobs.conftest import MakeWorker, eventually, rows, statuses

type Command = Callable[..., Awaitable[Result]]


async def failing(work: Work, address: str) -> None:  # noqa: ARG001  # The argument is what the test looks for.
    raise PermanentError("nobody\nlives here")


@pytest.fixture
def command(queue_url: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `app` with these arguments on the database of the queue."""
    monkeypatch.setenv("APP_ENVIRONMENT", "test")
    monkeypatch.setenv("APP_AUTH__SIGNING_KEYS", KEY_SET)
    monkeypatch.setenv("DATABASE_URL", queue_url)

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, cli, list(arguments))

    return run


@pytest.fixture
async def two_failed(clone: Database, make_worker: MakeWorker) -> Database:
    """A queue with two failed jobs, numbers 1 and 2."""
    for _ in range(2):
        async with clone.begin() as session:
            await enqueue(session, failing, "ada@example.org")

    async def have_failed() -> bool:
        return await statuses(clone) == ["failed", "failed"]

    async with make_worker(failing).running():
        await eventually(have_failed)
    return clone


@pytest.mark.usefixtures("two_failed")
async def test_failed_jobs_are_listed_with_their_error_and_without_their_arguments(command: Command) -> None:
    result = await command("jobs", "failed")

    first, second = result.output.splitlines()
    assert first.startswith("1  tests.jobs.test_commands:failing  20")
    assert first.endswith("Z  tried once  PermanentError: nobody")
    assert second.startswith("2  ")
    assert "ada@" not in result.output


async def test_a_failed_job_shows_its_number_of_attempts(two_failed: Database, command: Command) -> None:
    async with two_failed.begin() as session:
        await session.execute(text("UPDATE procrastinate_jobs SET attempts = 20"))
        await session.execute(text("DELETE FROM job_errors"))

    result = await command("jobs", "failed")

    assert result.output.splitlines()[0].endswith("Z  tried 20 times")


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize("arguments", [("failed",), ("retry", "--all")])
async def test_without_failed_jobs_both_commands_say_so(command: Command, arguments: tuple[str, ...]) -> None:
    result = await command("jobs", *arguments)

    assert (result.exit_code, result.output) == (0, "No job has failed.\n")


async def test_retry_puts_one_job_back_with_all_its_attempts(two_failed: Database, command: Command) -> None:
    result = await command("jobs", "retry", "2")

    assert (result.exit_code, result.output) == (0, "Put back 2.\n")
    queue = await rows(two_failed, "SELECT id, status::text, attempts FROM procrastinate_jobs ORDER BY id")
    assert [tuple(row) for row in queue] == [(1, "failed", 1), (2, "todo", 0)]


async def test_retry_all_puts_every_failed_job_back_and_they_run_again(
    two_failed: Database, command: Command, make_worker: MakeWorker
) -> None:
    result = await command("jobs", "retry", "--all")

    assert result.output == "Put back 1, 2.\n"
    assert await statuses(two_failed) == ["todo", "todo"]

    async def have_failed_again() -> bool:
        return await statuses(two_failed) == ["failed", "failed"]

    async with make_worker(failing).running():
        await eventually(have_failed_again)


async def test_retry_puts_several_runs_of_one_periodic_job_back(two_failed: Database, command: Command) -> None:
    async with two_failed.begin() as session:
        await session.execute(text("UPDATE procrastinate_jobs SET queueing_lock = 'periodic'"))

    await command("jobs", "retry", "--all")

    assert await statuses(two_failed) == ["todo", "todo"]


async def test_retry_of_a_job_that_has_not_failed_changes_nothing(two_failed: Database, command: Command) -> None:
    result = await command("jobs", "retry", "1", "7")

    assert isinstance(result.exception, NotFoundError)
    assert result.exception.detail == "There is no failed job 7; nothing was changed."
    assert await statuses(two_failed) == ["failed", "failed"]


@pytest.mark.usefixtures("clone")
@pytest.mark.parametrize("arguments", [(), ("1", "--all")])
async def test_retry_needs_either_numbers_or_all(command: Command, arguments: tuple[str, ...]) -> None:
    result = await command("jobs", "retry", *arguments)

    assert result.exit_code == 2
    assert "give either the ids of the jobs, or --all" in result.output


async def test_worker_is_a_command(command: Command) -> None:
    result = await command("worker", "--help")

    assert "Run jobs, such as sending mail" in result.output
