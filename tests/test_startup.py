"""Checks before a web process starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from app import startup
from app.core.security.keys import generate_key_set
from tests.auth.sealed_rows import GOLD, with_sealed
from tests.conftest import make_settings

WITHOUT = json.dumps({"keys": json.loads(generate_key_set())["keys"]})


def started(capsys: pytest.CaptureFixture[str], **auth: Any) -> list[dict[str, Any]]:
    """Return the log lines of a start with these keys."""
    startup.prepare(make_settings("postgresql://nobody@127.0.0.1/nothing", auth=auth))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.usefixtures("restored_logging")
def test_a_start_without_a_seal_key_says_how_to_add_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with_sealed(monkeypatch, GOLD)
    file = tmp_path / "keys.json"
    file.write_text(WITHOUT)

    (from_variable,) = started(capsys, signing_keys=WITHOUT)
    (from_file,) = started(capsys, signing_keys=None, signing_keys_file=file)

    assert from_variable["event"] == from_file["event"] == "no seal key, operations that store secrets answer 503"
    assert from_variable["level"] == "warning"
    assert from_variable["remedy"] == (
        "put APP_AUTH__SIGNING_KEYS into a file, run `app keys add seal` on it, and set the variable to its new content"
    )
    assert from_file["remedy"] == "run `app keys add seal`"


@pytest.mark.usefixtures("restored_logging")
def test_a_start_with_a_seal_key_or_without_a_sealed_column_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_sealed(monkeypatch, GOLD)
    assert started(capsys, signing_keys=generate_key_set()) == []

    with_sealed(monkeypatch)
    assert started(capsys, signing_keys=WITHOUT) == []
