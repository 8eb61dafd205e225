"""`app keys …` for seal keys whose rows are in a database: from the first key to the removal of the last old one."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from app.auth import jobs
from app.auth.settings import AuthSettings
from app.core import product
from app.core.commands import with_database
from app.core.db.database import Database, WriteSession
from app.core.security.keys import KeyRing, generate_key_set, load_key_ring
from app.core.security.sealing import SealBrokenError, Sealer
from app.jobs.queue import Work
from app.mail.mailer import Mailer
from app.mail.transports import MemoryTransport
from tests.auth.sealed_rows import GOLD, SILVER, make_safe, make_table, secrets, with_sealed
from tests.conftest import make_settings
from tests.test_cli import NOWHERE, Command, app, assert_failed

__all__ = ["app"]


@dataclass(frozen=True)
class Clone:
    """A key set file and a database with the table of the tests."""

    app: Command
    url: str
    file: Path

    def keys(self, *arguments: str, url: str | None = None) -> tuple[int, str, str]:
        variables = {"APP_AUTH__SIGNING_KEYS": "", "APP_AUTH__SIGNING_KEYS_FILE": str(self.file)}
        return self.app("keys", *arguments, url=url or self.url, **variables)

    def succeed(self, *arguments: str) -> str:
        code, out, errors = self.keys(*arguments)
        assert (code, errors) == (0, "")
        return out

    def refused(self, *arguments: str, url: str | None = None) -> str:
        """Run a command that must fail and leave the file as it was. Return its error."""
        before = self.file.read_bytes(), self.file.stat().st_ino
        code, out, errors = self.keys(*arguments, url=url)
        assert (code, out, errors.count("\n")) == (1, "", 1)
        assert (self.file.read_bytes(), self.file.stat().st_ino) == before
        assert [path.name for path in self.file.parent.iterdir()] == [self.file.name]
        return errors.removeprefix("app: ").rstrip("\n")

    @property
    def ring(self) -> KeyRing:
        return load_key_ring(AuthSettings(signing_keys_file=self.file))

    def run[T](self, call: Callable[[WriteSession], Awaitable[T]]) -> T:
        """Run statements on a connection of their own."""

        async def run(database: Database) -> T:
            async with database.begin() as session:
                return await call(session)

        return with_database(make_settings(self.url).database, run)

    def add(self, rows: int) -> None:
        self.run(partial(make_table, safes=[make_safe(Sealer(self.ring), number) for number in range(rows)]))

    def secrets(self) -> list[tuple[int, bytes, int, bytes]]:
        return self.run(partial(secrets, sealer=Sealer(self.ring)))

    def reseal(self) -> None:
        """Run the job, as a worker process with the current file does."""
        mailer = Mailer(MemoryTransport(), from_address="app@example.com", from_name=product.NAME)
        settings = make_settings(self.url)

        async def run(database: Database) -> None:
            await jobs.reseal(Work(database, mailer, self.ring, settings))

        with_database(settings.database, run)


@pytest.fixture
def clone(app: Command, clone_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A key set with the active key 1, and a feature with two sealed columns."""
    file = tmp_path / "keys.json"
    file.write_text(generate_key_set())
    with_sealed(monkeypatch, GOLD, SILVER)
    return Clone(app, clone_url, file)


def test_a_seal_key_is_replaced_while_its_rows_exist(clone: Clone) -> None:
    clone.add(rows=2)
    clone.succeed("add", "seal")
    out = clone.succeed("retire", "seal-1", "--force")

    assert out == "seal-2 is now active. seal-1 is retiring. Remove it when `app worker` has resealed its rows.\n"
    clone.add(rows=1)
    assert [(row[0], row[2]) for row in clone.secrets()] == [(1, 1), (2, 2), (1, 1)]
    before = [row[1::2] for row in clone.secrets()]
    sentence = clone.refused("remove", "seal-1", "--force")
    assert sentence == (
        "seal-1 still seals rows, which could never be read again: 2 in safes.gold, 2 in safes.silver; wait until `app "
        "worker` has resealed them, ten minutes after `retire`, or lose them with --lose-rows 4"
    )

    clone.reseal()

    assert clone.succeed("remove", "seal-1", "--force") == "Removed seal-1.\n"
    assert set(clone.ring.seal_keys) == {2}
    assert [(row[0], row[2]) for row in clone.secrets()] == [(2, 2)] * 3
    assert [row[1::2] for row in clone.secrets()] == before


@pytest.mark.parametrize("number", ["0", "3", "5", "1000000"])
def test_rows_are_lost_only_if_their_number_is_given(clone: Clone, number: str) -> None:
    clone.add(rows=2)
    clone.succeed("add", "seal")
    clone.succeed("retire", "seal-1", "--force")

    assert "or lose them with --lose-rows 4" in clone.refused("remove", "seal-1", "--force", "--lose-rows", number)

    clone.succeed("remove", "seal-1", "--force", "--lose-rows", "4")
    with pytest.raises(SealBrokenError):
        clone.secrets()


def test_the_number_does_not_replace_force(clone: Clone) -> None:
    clone.add(rows=2)
    clone.succeed("add", "seal")
    clone.succeed("retire", "seal-1", "--force")

    assert "some processes may still seal with seal-1" in clone.refused("remove", "seal-1", "--lose-rows", "4")


def test_rows_are_not_lost_under_a_key_that_seals_none(clone: Clone) -> None:
    clone.add(rows=2)
    clone.succeed("add", "seal")

    assert (
        clone.refused("remove", "seal-2", "--lose-rows", "4") == "no row is sealed with seal-2; leave --lose-rows out"
    )
    clone.succeed("remove", "seal-2")


def test_rows_under_a_next_key_are_counted_too(clone: Clone) -> None:
    # The file of an older backup was restored: a process has used the key as the active one.
    clone.succeed("add", "seal")
    older = clone.file.read_text()
    clone.succeed("retire", "seal-1", "--force")
    clone.add(rows=1)
    clone.file.write_text(older)

    assert "1 in safes.gold, 1 in safes.silver" in clone.refused("remove", "seal-2")


def test_a_seal_key_is_not_removed_without_its_database(clone: Clone) -> None:
    clone.succeed("add", "seal")

    sentence = clone.refused("remove", "seal-2", "--lose-rows", "0", url=NOWHERE)

    assert sentence.startswith("cannot reach the database")
    assert set(clone.ring.seal_keys) == {1, 2}


def test_a_seal_key_is_not_removed_without_its_table(clone: Clone) -> None:
    clone.succeed("add", "seal")

    assert "check the schema with `app migrate --check`" in clone.refused("remove", "seal-2")


def test_other_keys_are_removed_without_a_database(clone: Clone) -> None:
    clone.succeed("add", "pepper")

    assert clone.keys("remove", "2", url=NOWHERE) == (0, "Removed 2.\n", "")


def test_rows_cannot_be_lost_under_another_key(clone: Clone) -> None:
    clone.succeed("add", "pepper")

    assert clone.refused("remove", "2", "--lose-rows", "1") == "2 is no seal key and has no rows; leave --lose-rows out"


def test_seal_keys_from_the_environment_are_changed_in_a_file(app: Command) -> None:
    assert_failed(
        app("keys", "add", "seal"),
        "the keys come from APP_AUTH__SIGNING_KEYS, which no command can change; put them into a file, and set "
        "APP_AUTH__SIGNING_KEYS_FILE to its path instead",
    )


def test_an_older_key_set_seals_after_one_command(clone: Clone) -> None:
    clone.file.write_text(json.dumps({"keys": json.loads(clone.file.read_text())["keys"]}))
    assert clone.ring.active_seal_key is None

    clone.succeed("add", "seal")
    clone.add(rows=1)

    assert clone.secrets() == [(1, b"gold 0", 1, b"silver 0")]
