"""The commands in docs/operations/logs.md, run on the log of a real server."""

import asyncio
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text

from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from tests.conftest import ROOT, cloned, log_in, make_settings
from tests.factories import make_user
from tests.listings import listings
from tests.servers import real_server

DOCUMENT = ROOT / "docs" / "operations" / "logs.md"
ME = "/api/v1/users/me"
# Records that no request of this test causes, in the format of the log.
SAMPLES = [
    {"event": "unhandled error", "level": "error", "exception": "Traceback:\n  in f\nZeroDivisionError: by zero\n"},
    {"event": "event loop held", "level": "warning", "duration_ms": 132.5, "stack": "  in f\n    sleep(1)\n"},
    {"event": "revocation listener lost its connection", "level": "warning", "timestamp": "2026-11-26T12:00:00Z"},
    {
        "event": "job failed and will be retried",
        "timestamp": "2026-11-26T12:00:00Z",
        "job": "users.jobs:mail_link",
        "attempt": 2,
        "error": "MailDelayedError: 451 later",
    },
    {
        "event": "request",
        "method": "GET",
        "route": "/x",
        "status": 503,
        "duration_ms": 1,
        "statements": 0,
        "database_ms": 0,
    },
]

pytestmark = pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")


def questions() -> list[tuple[str, str]]:
    """The questions of the document, each with the command that answers it."""
    section = DOCUMENT.read_text().partition("## Answering questions from the log")[2].partition("\n## ")[0]
    return re.findall(r"^([A-Z][^\n]*\?)\n\n```sh\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Log:
    """The log of a server, with the ids of an account and of a request in it."""

    directory: Path
    user_id: str
    request_id: str


@pytest.fixture(scope="module")
async def log(template_url: str, hasher: PasswordHasher, tmp_path_factory: pytest.TempPathFactory) -> Log:
    """The log of a real server on which everything is slow."""
    directory = tmp_path_factory.mktemp("log")
    slow = {"APP_LOG__SLOW_REQUEST": "1ms", "APP_LOG__SLOW_QUERY": "1ms", "APP_LOG__SAMPLE_EVERY": "1"}
    async with cloned(template_url) as url:
        database = Database(make_settings(url).database)
        async with database.begin() as session:
            user = await make_user(session, hasher)
        async with (
            real_server(url, **slow) as server,
            AsyncClient(base_url=server.base_url) as client,
            database.begin() as holder,
        ):
            headers = await log_in(client, user.email)
            # A request that waits for a lock is slow on any machine.
            await holder.execute(text("LOCK TABLE users IN ACCESS EXCLUSIVE MODE"))
            waiting = asyncio.create_task(client.get(ME, headers=headers))
            async with asyncio.timeout(20):
                while not await holder.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
                    pass
            # The request waits for at least this time.
            await asyncio.sleep(0.01)
            await holder.rollback()
            request_id = (await waiting).headers["x-request-id"]
            async with asyncio.timeout(20):
                # The lines of slow statements contain the id too, but come earlier.
                while request_id not in {line["request_id"] for line in server.records("request")}:  # noqa: ASYNC110  # Its file.
                    await asyncio.sleep(0.01)
            lines = server.lines()
        await database.dispose()
    extra = ["Traceback of another program", *map(json.dumps, SAMPLES)]
    (directory / "app.log").write_text("\n".join([*lines, *extra]) + "\n")
    return Log(directory, str(user.id), request_id)


ANSWERS = {
    "Which routes get most requests": r"^ +1 +[0-9.]+ +[0-9.]+  GET /api/v1/users/me$",
    "Which requests failed": r"^ +1 503 GET /x$",
    "A user quotes a request id": r'^\{.*"route": ?"/api/v1/users/me".*\}$',
    "Which requests did one account send": r"^20[0-9T:.-]+Z 200 GET /api/v1/users/me$",
    "Which requests were slow": r"^[0-9.]+ ms, of which [0-9.]+ in 1 statements: GET /api/v1/users/me \w+$",
    "Which statements are slow": r"^[0-9]+ [0-9.]+ ms SELECT users\.id.*\$1",
    "Which code held the event loop": r"^132\.5 ms\n  in f\n    sleep\(1\)$",
    "Which routes execute most statements": r"^4 /api/v1/auth/token$",
    "Which exceptions occurred": r"^ +1 ZeroDivisionError: by zero$",
    "Which jobs failed": r"^2026-11-26T12:00:00Z users\.jobs:mail_link attempt 2: MailDelayedError: 451 later$",
    "When was the database unavailable": r"^2026-11-26T12:00:00Z revocation listener lost its connection$",
}


def test_each_question_has_an_answer_to_compare_with() -> None:
    asked = [question for question, _ in questions()]

    assert len(asked) == len(ANSWERS) == 11
    assert all(question.startswith(start) for question, start in zip(asked, ANSWERS, strict=True))


@pytest.mark.parametrize(("question", "command"), questions(), ids=lambda value: value[:30] if "?" in value else "")
async def test_the_command_answers_the_question(log: Log, question: str, command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *("sh", "-euc", command),
        cwd=log.directory,
        env={"PATH": os.environ["PATH"], "REQUEST_ID": log.request_id, "USER_ID": log.user_id},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0].decode()

    (expected,) = [answer for start, answer in ANSWERS.items() if question.startswith(start)]
    assert process.returncode == 0, output
    assert re.search(expected, output, flags=re.MULTILINE), output


def test_the_fields_of_an_access_line_are_those_in_the_table(log: Log) -> None:
    table = re.search(r"^\| field .*?\n\n", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert table
    explained = set(re.findall(r"`(\w+)`", table[0]))
    lines = [json.loads(line) for line in (log.directory / "app.log").read_text().splitlines() if line.startswith("{")]
    written = {member for line in lines if line.get("event") == "request" for member in line}

    assert written - {"event", "level", "logger", "timestamp"} <= explained


def test_the_listings_of_this_section_are_the_questions() -> None:
    assert [one.text for one in listings(DOCUMENT) if one.language == "sh"] == [command for _, command in questions()]
