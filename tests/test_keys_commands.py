"""`app keys …`: the effect of each command on the key set file, and its errors."""

import json
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine

from app.auth.settings import AuthSettings
from app.core.security.keys import generate_key_set, load_key_ring, parse_key_ring
from tests.auth.sealed_rows import with_sealed
from tests.test_cli import Command, app, assert_failed

__all__ = ["app"]

type Keys = list[dict[str, Any]]
type Run = Callable[..., tuple[int, str, str]]

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
PRIVATE = {"d", "k"}
KINDS = ["signing", "pepper", "seal"]


@pytest.fixture(autouse=True)
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(NOON, tick=False) as clock:
        yield clock


@pytest.fixture(autouse=True)
def without_sealed_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No feature seals, so these commands need no database. `test_seal_keys_commands.py` has those that do."""
    with_sealed(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(generate_key_set())
    path.chmod(0o600)
    return path


@pytest.fixture
def keys(app: Command, file: Path) -> Run:
    """Return a function that runs `app keys …` on the file."""

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        given = {"APP_AUTH__SIGNING_KEYS": "", "APP_AUTH__SIGNING_KEYS_FILE": str(file), **environment}
        return app("keys", *arguments, **given)

    return run


def stored(file: Path) -> Keys:
    """The keys of the file, without the seal keys."""
    found: Keys = json.loads(file.read_text())["keys"]
    return found


def stored_seal_keys(file: Path) -> Keys:
    found: Keys = json.loads(file.read_text()).get("seal_keys", [])
    return found


def states(file: Path, kind: str) -> dict[str, str]:
    if kind == "seal":
        return {key["kid"]: key["state"] for key in stored_seal_keys(file)}
    return {
        key["kid"]: key["state"]
        for key in stored(file)
        if "state" in key and (key["kty"] == "oct") == (kind == "pepper")
    }


def kid_in(file: Path, kind: str, state: str) -> str:
    (kid,) = [kid for kid, found in states(file, kind).items() if found == state]
    return kid


def succeed(result: tuple[int, str, str]) -> str:
    code, out, errors = result
    assert (code, errors) == (0, "")
    return out


def assert_private(output: str, file: Path) -> None:
    """Check that the output contains no secret."""
    secrets = {key[name] for key in [*stored(file), *stored_seal_keys(file)] for name in PRIVATE & key.keys()}
    assert secrets
    assert not any(secret in output for secret in secrets)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rotated_key_goes_from_active_to_retiring_to_removed(
    keys: Run, file: Path, clock: time_machine.Traveller, kind: str
) -> None:
    old = kid_in(file, kind, "active")
    others = [other for other in KINDS if other != kind]
    untouched = [states(file, other) for other in others]

    output = succeed(keys("add", kind))
    new = kid_in(file, kind, "next")
    assert states(file, kind) == {old: "active", new: "next"}
    clock.shift(timedelta(hours=25))
    output += succeed(keys("retire", old))
    assert states(file, kind) == {old: "retiring", new: "active"}
    output += succeed(keys("list"))
    clock.shift(timedelta(days=15))
    output += succeed(keys("remove", old))
    assert states(file, kind) == {new: "active"}

    assert [states(file, other) for other in others] == untouched
    assert_private(output, file)
    ring = load_key_ring(AuthSettings(signing_keys_file=file))
    assert new in {ring.active, str(ring.active_pepper), f"seal-{ring.active_seal_key}"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_a_new_signing_key_has_the_chosen_algorithm(keys: Run, file: Path, algorithm: str) -> None:
    succeed(keys("add", "signing", "--algorithm", algorithm))
    succeed(keys("retire", kid_in(file, "signing", "active"), "--force"))

    ring = load_key_ring(AuthSettings(signing_keys_file=file))
    assert ring.signing[ring.active].alg == algorithm


def test_a_key_set_can_be_written_to_the_standard_output(
    keys: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    output = succeed(keys("generate", "-"))

    assert parse_key_ring(output, source="output").active_seal_key
    assert list(tmp_path.glob("-")) == []


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_a_generated_key_set_has_the_chosen_algorithm(keys: Run, tmp_path: Path, algorithm: str) -> None:
    succeed(keys("generate", str(tmp_path / "new.json"), "--algorithm", algorithm))

    ring = parse_key_ring((tmp_path / "new.json").read_text(), source="new")
    assert ring.signing[ring.active].alg == algorithm


def test_the_list_shows_the_state_of_each_key(keys: Run, file: Path) -> None:
    succeed(keys("add", "pepper"))

    out = succeed(keys("list"))

    assert out.splitlines() == [
        f"signing  ES256   active    since 2026-01-31 12:00Z  {kid_in(file, 'signing', 'active')}",
        "pepper           active    since 2026-01-31 12:00Z  1",
        "pepper           next      since 2026-01-31 12:00Z  2",
        "seal             active    since 2026-01-31 12:00Z  seal-1",
    ]


def test_keys_from_the_environment_are_listed(keys: Run, file: Path) -> None:
    out = succeed(keys("list", APP_AUTH__SIGNING_KEYS=file.read_text(), APP_AUTH__SIGNING_KEYS_FILE=""))

    assert kid_in(file, "signing", "active") in out
    assert_private(out, file)


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_the_file_keeps_its_owner_and_its_mode(keys: Run, file: Path, mode: int) -> None:
    file.chmod(mode)
    before = file.stat()

    succeed(keys("add", "signing"))

    after = file.stat()
    assert after.st_ino != before.st_ino
    assert (stat.S_IMODE(after.st_mode), after.st_uid, after.st_gid) == (mode, before.st_uid, before.st_gid)


def test_the_target_of_a_symbolic_link_is_replaced(keys: Run, file: Path) -> None:
    target = file.rename(file.with_name("target.json"))
    file.symlink_to(target)

    succeed(keys("add", "signing"))

    assert file.is_symlink()
    assert len(states(target, "signing")) == 2


def test_derived_keys_stay_the_same_after_the_removal_of_the_first_pepper(keys: Run, file: Path) -> None:
    # Key sets of older releases have no root key.
    file.write_text(json.dumps({"keys": stored(file)[:2]}))
    before = load_key_ring(AuthSettings(signing_keys_file=file)).derive("rate-limit")

    for command in (["add", "pepper"], ["retire", "1", "--force"], ["remove", "1", "--force"]):
        succeed(keys(*command))

    ring = load_key_ring(AuthSettings(signing_keys_file=file))
    assert set(ring.peppers) == {2}
    assert ring.derive("rate-limit") == before


def test_the_next_key_can_be_removed(keys: Run, file: Path) -> None:
    succeed(keys("add", "signing"))

    succeed(keys("remove", kid_in(file, "signing", "next")))

    assert list(states(file, "signing").values()) == ["active"]


# Errors


def refused(keys: Run, file: Path, *arguments: str) -> str:
    """Run a command that must fail and change nothing. Return its error."""
    before = file.read_bytes(), file.stat().st_ino
    code, out, errors = keys(*arguments)
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert (file.read_bytes(), file.stat().st_ino) == before
    assert_private(errors, file)
    return errors.removeprefix("app: ").rstrip("\n")


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_key_cannot_retire(keys: Run, file: Path, kind: str) -> None:
    kid = kid_in(file, kind, "active")

    sentence = refused(keys, file, "retire", kid, "--force")

    assert sentence == f"there is no {kind} key that can replace {kid}; first add one with `app keys add {kind}`"


@pytest.mark.parametrize("kind", KINDS)
def test_the_active_key_cannot_be_removed(keys: Run, file: Path, kind: str) -> None:
    kid = kid_in(file, kind, "active")

    sentence = refused(keys, file, "remove", kid, "--force")

    assert sentence == f"{kid} is active; first retire it with `app keys retire {kid}`"


def test_each_kind_has_at_most_one_next_key(keys: Run, file: Path) -> None:
    succeed(keys("add", "pepper"))

    sentence = refused(keys, file, "add", "pepper")

    assert sentence == "2 is already the next pepper key; retire the active key so that it takes over, or remove it"


@pytest.mark.parametrize(
    ("kind", "lead", "until"),
    [
        ("signing", 1440, "2026-02-01 12:00Z"),
        ("pepper", 10, "2026-01-31 12:10Z"),
        ("seal", 10, "2026-01-31 12:10Z"),
    ],
)
def test_a_key_that_some_processes_may_not_know_becomes_active_only_with_force(
    keys: Run, file: Path, clock: time_machine.Traveller, kind: str, lead: int, until: str
) -> None:
    succeed(keys("add", kind))
    old, new = kid_in(file, kind, "active"), kid_in(file, kind, "next")
    clock.shift(timedelta(minutes=lead, seconds=-1))

    sentence = refused(keys, file, "retire", old)

    assert sentence == f"some processes or services may not know {new} yet; wait until {until}, or use --force"
    succeed(keys("retire", old, "--force"))
    assert states(file, kind) == {old: "retiring", new: "active"}


@pytest.mark.parametrize("kind", KINDS)
def test_retiring_twice_is_refused(keys: Run, file: Path, kind: str) -> None:
    old = kid_in(file, kind, "active")
    succeed(keys("add", kind))
    succeed(keys("retire", old, "--force"))
    succeed(keys("add", kind))

    sentence = refused(keys, file, "retire", old, "--force")

    assert sentence == f"{old} is retiring; only the active key can be retired"


@pytest.mark.parametrize(
    ("kind", "lifetime", "until"),
    [
        ("signing", timedelta(minutes=20), "2026-01-31 12:20Z"),
        ("pepper", timedelta(days=14), "2026-02-14 12:00Z"),
    ],
)
def test_a_key_with_valid_tokens_is_removed_only_with_force(
    keys: Run, file: Path, clock: time_machine.Traveller, kind: str, lifetime: timedelta, until: str
) -> None:
    old = kid_in(file, kind, "active")
    succeed(keys("add", kind))
    succeed(keys("retire", old, "--force"))
    clock.shift(lifetime - timedelta(seconds=1))

    sentence = refused(keys, file, "remove", old)

    assert sentence == f"tokens made with {old} may still be valid; wait until {until}, or use --force"
    succeed(keys("remove", old, "--force"))
    assert old not in states(file, kind)


def test_a_seal_key_that_a_process_may_still_use_is_removed_only_with_force(
    keys: Run, file: Path, clock: time_machine.Traveller
) -> None:
    succeed(keys("add", "seal"))
    succeed(keys("retire", "seal-1", "--force"))
    clock.shift(timedelta(minutes=10, seconds=-1))

    sentence = refused(keys, file, "remove", "seal-1")

    assert sentence == "some processes may still seal with seal-1; wait until 2026-01-31 12:10Z, or use --force"
    succeed(keys("remove", "seal-1", "--force"))
    assert states(file, "seal") == {"seal-2": "active"}


def test_the_first_seal_key_of_an_older_file_is_active_at_once_and_changes_no_other_key(keys: Run, file: Path) -> None:
    file.write_text(json.dumps({"keys": stored(file), "member": "of another program"}))
    before = stored(file)

    out = succeed(keys("add", "seal"))

    assert out == "Added seal-1. It is active.\n"
    assert states(file, "seal") == {"seal-1": "active"}
    assert stored(file) == before
    assert json.loads(file.read_text())["member"] == "of another program"
    assert load_key_ring(AuthSettings(signing_keys_file=file)).active_seal_key == 1
    assert_private(out, file)


def test_a_removed_next_seal_key_leaves_the_others(keys: Run, file: Path) -> None:
    succeed(keys("add", "seal"))

    succeed(keys("remove", "seal-2"))

    assert states(file, "seal") == {"seal-1": "active"}


def test_a_pepper_and_a_seal_key_with_one_number_are_told_apart(keys: Run, file: Path) -> None:
    succeed(keys("add", "pepper"))
    succeed(keys("add", "seal"))

    succeed(keys("remove", "seal-2"))

    assert states(file, "pepper") == {"1": "active", "2": "next"}
    assert states(file, "seal") == {"seal-1": "active"}


def test_mailed_links_count_as_valid_tokens_of_a_pepper(keys: Run) -> None:
    succeed(keys("add", "pepper"))
    succeed(keys("retire", "1", "--force"))

    code, _, errors = keys("remove", "1", APP_AUTH__REFRESH_IDLE_TTL="1h")

    assert code == 1
    assert "wait until 2026-02-03 12:00Z" in errors


def test_a_key_without_a_date_counts_as_new(keys: Run, file: Path) -> None:
    old = kid_in(file, "signing", "active")
    succeed(keys("add", "signing"))
    succeed(keys("retire", old, "--force"))
    edited = [{name: value for name, value in key.items() if name != "since"} for key in stored(file)]
    file.write_text(json.dumps({"keys": edited}))

    sentence = refused(keys, file, "remove", old)

    assert sentence == f"tokens made with {old} may still be valid; wait until 2026-01-31 12:20Z, or use --force"
    assert "since unknown" in succeed(keys("list"))


@pytest.mark.parametrize("command", ["retire", "remove"])
def test_an_unknown_key_is_reported(keys: Run, file: Path, command: str) -> None:
    assert refused(keys, file, command, "unknown") == "there is no key unknown; `app keys list` shows all keys"


@pytest.mark.parametrize("arguments", [["add", "signing"], ["retire", "1"], ["remove", "1"]])
def test_keys_from_the_environment_cannot_be_changed(app: Command, arguments: list[str]) -> None:
    result = app("keys", *arguments)

    assert_failed(
        result,
        "the keys come from APP_AUTH__SIGNING_KEYS, which no command can change; put them into a file, and set "
        "APP_AUTH__SIGNING_KEYS_FILE to its path instead",
    )


@pytest.mark.parametrize("arguments", [["list"], ["add", "signing"]])
def test_without_keys_the_error_says_how_to_create_them(app: Command, arguments: list[str]) -> None:
    result = app("keys", *arguments, APP_AUTH__SIGNING_KEYS="")

    assert_failed(result, "APP_AUTH__SIGNING_KEYS_FILE: is missing; create one with `app keys generate`")


def test_a_broken_file_is_not_changed(keys: Run, file: Path) -> None:
    content = '{"keys": ["canary"]}'
    file.write_text(content)

    assert_failed(keys("add", "signing"), f"{file}: this is not a private key set in the format of `app keys generate`")
    assert file.read_text() == content
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_second_command_at_the_same_time_is_refused(keys: Run, file: Path) -> None:
    other = file.with_name("keys.json.new")
    other.write_text("content of the other command")

    sentence = refused(keys, file, "add", "signing")

    assert sentence == f"{file}: another command is changing the keys; if it was interrupted, remove {other}"
    assert other.read_text() == "content of the other command"


def test_a_file_that_cannot_be_replaced_is_reported(keys: Run, file: Path) -> None:
    # The name of the temporary file is too long for the file system, also for root.
    long = file.rename(file.with_name("k" * 255))

    result = keys("add", "signing", APP_AUTH__SIGNING_KEYS_FILE=str(long))

    assert_failed(result, f"{long}: the file cannot be replaced: File name too long")


def test_a_failed_change_leaves_the_file_as_it_was(keys: Run, file: Path) -> None:
    keys_of_255 = [key if key.get("kid") != "1" else key | {"kid": "255"} for key in stored(file)]
    file.write_text(json.dumps({"keys": keys_of_255}))

    # The next number, 256, does not fit into a token.
    refused(keys, file, "add", "pepper")

    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("kind", ["pepper", "seal"])
def test_another_key_with_an_algorithm_is_refused_and_changes_nothing(keys: Run, file: Path, kind: str) -> None:
    before = file.read_text()

    code, _, errors = keys("add", kind, "--algorithm", "EdDSA")

    assert code == 2
    assert "only a signing key has an algorithm" in errors
    assert file.read_text() == before
