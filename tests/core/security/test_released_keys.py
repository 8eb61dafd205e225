"""The code of the release before reads and changes key sets that have seal keys, as during a rolling deploy and after a roll back."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.auth.settings import AuthSettings
from app.core.errors import ConfigurationError
from app.core.security import rotation
from app.core.security.keys import generate_key_set, load_key_ring, new_seal_key, parse_key_ring
from tests import released_keys

STATES: list[list[Any]] = [["active"], ["active", "next"], ["retiring", "active"], ["retiring", "active", "next"]]


def key_set_with(*states: Any) -> dict[str, Any]:
    seal_keys = [new_seal_key(number, state) for number, state in enumerate(states, 1)]
    return {**json.loads(generate_key_set()), "seal_keys": seal_keys}


@pytest.mark.parametrize("states", STATES)
def test_released_code_reads_the_same_signing_keys_and_peppers(states: list[Any]) -> None:
    text = json.dumps(key_set_with(*states))

    released, current = released_keys.parse_key_ring(text, source=""), parse_key_ring(text, source="")

    assert released.peppers == current.peppers
    assert (released.active, released.active_pepper) == (current.active, current.active_pepper)
    assert released.public_set() == current.public_set()
    assert released.derive("cursor") == current.derive("cursor")


def test_released_code_accepts_a_file_that_the_commands_have_changed(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(released_keys.generate_key_set())
    settings = AuthSettings(signing_keys_file=file)
    running = released_keys.load_key_ring(settings)
    before = dict(running.peppers)

    for _ in range(2):
        with rotation.changing(settings) as keys:
            rotation.add(keys, "seal", "ES256")
        running.reload_if_changed()

    assert running.peppers == before
    assert set(load_key_ring(settings).seal_keys) == {1, 2}
    assert released_keys.load_key_ring(settings).peppers == before


def test_a_change_by_released_code_keeps_the_seal_keys() -> None:
    key_set = key_set_with("retiring", "active")

    # `app keys` of the release before writes this after its change of the list in `keys`.
    changed = released_keys.with_root({**key_set, "keys": key_set["keys"][:2]})

    assert (
        parse_key_ring(json.dumps(changed), source="").seal_keys
        == parse_key_ring(json.dumps(key_set), source="").seal_keys
    )


@pytest.mark.parametrize("members", [{}, {"kid": "1"}, {"kid": "2"}, {"kty": "seal"}, {"use": "derive"}])
def test_released_code_refuses_a_seal_key_among_the_other_keys(members: dict[str, str]) -> None:
    # The reason for a member of its own: docs/decisions/0028-seal-keys.md.
    key_set = json.loads(generate_key_set())
    mixed = {"keys": [*key_set["keys"], key_set["seal_keys"][0] | members]}

    with pytest.raises(ConfigurationError):
        released_keys.parse_key_ring(json.dumps(mixed), source="")
