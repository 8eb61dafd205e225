"""`app backup-check`: what it prints, and a sentence for each reason why a restored database cannot be served."""

import json
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from app.core.commands import in_transaction
from app.core.db.database import WriteSession
from app.core.security.keys import generate_key_set, parse_key_ring
from app.core.security.sealing import Sealer
from app.migrations.revisions import head
from tests.auth.sealed_rows import GOLD, SILVER, Safe, make_safe, make_table, with_sealed
from tests.conftest import KEY_SET, make_settings
from tests.factories import make_user
from tests.test_cli import NOWHERE, Command, app, empty_url

__all__ = ["app", "empty_url"]

_NOTHING = "restore the backup first, or name the database that it was restored into"
_KEYS = 'add the key from the key set of that time: docs/operations/backups.md, "Keys"'


def run(url: str, *statements: str) -> None:
    """Run statements in a transaction of their own."""

    async def call(session: WriteSession) -> None:
        for statement in statements:
            await session.execute(text(statement))

    in_transaction(make_settings(url).database, call)


@pytest.fixture
def restored(clone_url: str) -> str:
    """A database with one account."""

    async def add(session: WriteSession) -> None:
        await make_user(session)

    in_transaction(make_settings(clone_url).database, add)
    return clone_url


def sealed_with(url: str, key_set: str, *extra: Safe) -> None:
    safes = [make_safe(Sealer(parse_key_ring(key_set, source="test")), number) for number in range(2)]
    in_transaction(make_settings(url).database, partial(make_table, safes=[*safes, *extra]))


def sentences(result: tuple[int, str, str]) -> list[str]:
    code, _, errors = result
    assert code == 1
    return [line.removeprefix("app: ") for line in errors.splitlines()]


def facts(result: tuple[int, str, str]) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in result[1].splitlines())


def test_a_good_backup_is_described(app: Command, restored: str) -> None:
    jobs = (
        "INSERT INTO procrastinate_jobs (queue_name, task_name, status) "
        "VALUES ('default', 'one', 'todo'), ('default', 'two', 'todo'), ('default', 'three', 'doing')"
    )
    run(restored, "UPDATE users SET created_at = '2026-11-02 03:04:05+00'", jobs)

    result = app("backup-check", url=restored)

    assert (result[0], result[2]) == (0, "")
    found = facts(result)
    assert {name: found[name] for name in ("schema", "users", "sessions", "jobs")} == {
        "schema": head(),
        "users": "1",
        "sessions": "0",
        "jobs": "1 doing, 2 todo",
    }
    *_, newest, verdict = result[1].splitlines()
    assert newest == "newest row         2026-11-02 03:04:05Z, in users"
    assert verdict == "This release can serve the database with these keys."


def test_the_check_writes_nothing(app: Command, restored: str) -> None:
    run(restored, "ALTER DATABASE {} SET default_transaction_read_only = on".format(restored.rpartition("/")[2]))

    assert app("backup-check", url=restored)[0] == 0


def test_sealed_values_are_opened_with_the_keys(app: Command, restored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_sealed(monkeypatch, GOLD, SILVER)
    sealed_with(restored, KEY_SET)

    result = app("backup-check", url=restored)

    assert result[0] == 0
    assert [line for line in result[1].splitlines() if line.startswith("sealed ")] == [
        "sealed             safes.gold: 2 opened by seal-1",
        "sealed             safes.silver: 2 opened by seal-1",
    ]


def test_a_missing_seal_key_is_named(app: Command, restored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_sealed(monkeypatch, GOLD)
    sealed_with(restored, KEY_SET)
    without = json.dumps({"keys": json.loads(KEY_SET)["keys"]})

    result = app("backup-check", url=restored, APP_AUTH__SIGNING_KEYS=without)

    assert sentences(result) == [
        f"a value for gold was sealed with seal-1, which the key set lacks, and 1 more in safes.gold; {_KEYS}"
    ]
    assert "sealed             safes.gold: no row opened\n" in result[1]
    assert "can serve" not in result[1]


def test_a_key_of_the_same_number_in_another_key_set_is_no_match(
    app: Command, restored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_sealed(monkeypatch, GOLD)
    other = generate_key_set()
    (stranger,) = [make_safe(Sealer(parse_key_ring(other, source="test")), 2)]
    sealed_with(restored, KEY_SET, stranger)

    result = app("backup-check", url=restored)

    (sentence,) = sentences(result)
    assert sentence.startswith("a value for gold was not sealed with this seal-1 for this owner, or was changed since")
    assert "and 0 more in safes.gold" in sentence
    assert "sealed             safes.gold: 2 opened by seal-1\n" in result[1]


def test_a_value_that_was_cut_off_is_found(app: Command, restored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_sealed(monkeypatch, GOLD)
    sealed_with(restored, KEY_SET, Safe(id=uuid4(), owner_id=uuid4(), gold=b"", silver=b""))

    (sentence,) = sentences(app("backup-check", url=restored))

    assert sentence.startswith("a sealed value for gold is too short, and 0 more in safes.gold")


def test_an_interrupted_restore_is_found(app: Command, restored: str) -> None:
    run(
        restored,
        "ALTER TABLE sessions DROP CONSTRAINT fk_sessions_user_id_users",
        "DROP INDEX ix_sessions_user_id_last_seen_at_id",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_sessions_absolute_expires_at'::regclass",
    )

    (sentence,) = sentences(app("backup-check", url=restored))

    assert sentence == (
        "the schema lacks fk_sessions_user_id_users, ix_sessions_absolute_expires_at, ix_sessions_user_id_last_seen_at_id: the "
        "restore was interrupted or had errors; restore again into an empty database, with --exit-on-error"
    )


def test_a_database_without_a_schema_is_no_backup(app: Command, empty_url: str) -> None:
    assert sentences(app("backup-check", url=empty_url)) == [
        f"the schema is at revision none, this program needs {head()}; {_NOTHING}"
    ]


def test_a_database_without_rows_is_no_backup(app: Command, clone_url: str) -> None:
    assert sentences(app("backup-check", url=clone_url)) == [f"the tables are empty: {_NOTHING}"]


@pytest.mark.parametrize(
    ("revision", "advice"),
    [
        ("20261126_session_cutoffs", "run `app migrate`, then this command again"),
        ("29990101_newer", "use the release that made the backup, or a newer one"),
    ],
)
def test_a_backup_of_another_release_is_found(app: Command, restored: str, revision: str, advice: str) -> None:
    run(restored, f"UPDATE alembic_version SET version_num = '{revision}'")  # noqa: S608  # A constant of this file.

    (sentence,) = sentences(app("backup-check", url=restored))

    assert sentence == f"the schema is at revision {revision}, this program needs {head()}; {advice}"


def test_errors_of_the_surroundings_are_one_sentence(app: Command, tmp_path: Path) -> None:
    lost: dict[str, Any] = {"APP_AUTH__SIGNING_KEYS": "", "APP_AUTH__SIGNING_KEYS_FILE": str(tmp_path / "none")}

    assert sentences(app("backup-check", url=NOWHERE))[0].startswith("cannot reach the database: ")
    assert sentences(app("backup-check", url=NOWHERE, **lost)) == [
        f"{tmp_path / 'none'}: the signing keys cannot be read: No such file or directory"
    ]
