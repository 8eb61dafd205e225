"""The generated pages of the documentation match the code."""

import re
import sys
from pathlib import Path

import pytest

from app.dev import docs, guide
from app.dev.__main__ import program
from app.migrations import revisions
from app.migrations.errors import MigrationFileError
from app.migrations.revisions import Revisions
from app.settings import variables


def test_the_generated_pages_are_up_to_date() -> None:
    assert docs.stale() == [], "run: make docs"


def test_every_setting_has_a_description() -> None:
    rows = [line.split(" | ") for line in docs.configuration().splitlines() if line.startswith("| `APP_")]

    assert [row[0].strip("| `") for row in rows] == [variable for variable, _, _ in variables()]
    assert [row[0] for row in rows if len(row[2]) < len("| what |")] == []


def test_a_changed_or_missing_page_is_stale_until_it_is_written(tmp_path: Path) -> None:
    assert docs.stale(tmp_path) == list(docs.DOCUMENTS)

    docs.write(tmp_path)
    assert docs.stale(tmp_path) == []

    with (tmp_path / "docs" / "configuration.md").open("a") as document:
        document.write("| `APP_INVENTED` | | |\n")
    assert docs.stale(tmp_path) == [Path("docs/configuration.md")]


without_notes = pytest.mark.skipif(
    (docs.ROOT / "src" / "app" / "notes").exists(), reason="this repository has the feature of the guide"
)


@without_notes
def test_the_migration_of_the_guide_follows_the_newest_and_has_its_date(monkeypatch: pytest.MonkeyPatch) -> None:
    before = guide.text()
    monkeypatch.setattr(revisions, "_revisions", lambda: Revisions("20991231_newest", frozenset({"20991231_newest"})))

    after = guide.text()

    assert 'revision = "20991231_notes"\ndown_revision = "20991231_newest"\n' in after
    assert "versions/20991231_notes.py" in after
    assert len(after.splitlines()) == len(before.splitlines())
    assert docs.stale() == [Path("docs/adding-a-feature.md")]


@without_notes
def test_the_guide_keeps_its_date_after_a_revision_without_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    (own,) = re.findall(r'^revision = "(\w+)"', guide.text(), flags=re.MULTILINE)
    monkeypatch.setattr(revisions, "_revisions", lambda: Revisions("newest", frozenset({"newest"})))

    assert f'revision = "{own}"\ndown_revision = "newest"\n' in guide.text()


def test_the_guide_does_not_change_in_a_repository_with_its_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    before = guide.text()
    (own,) = re.findall(r'^revision = "(\w+)"', before, flags=re.MULTILINE)
    monkeypatch.setattr(
        revisions, "_revisions", lambda: Revisions("20991231_later", frozenset({own, "20991231_later"}))
    )

    assert guide.text() == before


@pytest.mark.parametrize("arguments", [["docs"], ["docs", "--check"]])
def test_invalid_migrations_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    def refuse() -> None:
        message = "two heads"
        raise MigrationFileError(message)

    monkeypatch.setattr(revisions, "_revisions", refuse)
    monkeypatch.setattr(sys, "argv", ["app.dev", *arguments])

    with pytest.raises(SystemExit) as ended:
        program()

    assert (ended.value.code, capsys.readouterr()) == (1, ("", "two heads\n"))
