"""Documents that are written from the code say what the code says."""

from pathlib import Path

from app.core.config import variables
from app.dev import docs


def test_the_documents_in_the_repository_are_up_to_date() -> None:
    assert docs.stale() == [], "write them again with: make docs"


def test_every_setting_is_documented_with_what_it_does() -> None:
    rows = [line.split(" | ") for line in docs.configuration().splitlines() if line.startswith("| `APP_")]

    assert [row[0].strip("| `") for row in rows] == [variable for variable, _, _ in variables()]
    assert [row[0] for row in rows if len(row[2]) < len("| what |")] == []


def test_a_changed_or_missing_document_is_stale_until_it_is_written(tmp_path: Path) -> None:
    assert docs.stale(tmp_path) == list(docs.DOCUMENTS)

    docs.write(tmp_path)
    assert docs.stale(tmp_path) == []

    with (tmp_path / "docs" / "configuration.md").open("a") as document:
        document.write("| `APP_INVENTED` | | |\n")
    assert docs.stale(tmp_path) == [Path("docs/configuration.md")]
