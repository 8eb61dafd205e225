"""The private key set: how it is read and reloaded, and that no error text quotes an invalid one."""

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey, OKPKey, RSAKey
from pydantic import SecretStr

from app.auth.settings import AuthSettings
from app.core.errors import ConfigurationError
from app.core.security.keys import (
    Algorithm,
    KeyRing,
    generate_key_set,
    load_key_ring,
    new_seal_key,
    new_signing_key,
    parse_key_ring,
    reloading,
    with_root,
)

type Keys = list[dict[str, Any]]

BROKEN = "here: this is not a private key set in the format of `app keys generate`"


def key_set() -> Keys:
    """An active signing key, an active pepper, and the root."""
    keys: Keys = json.loads(generate_key_set())["keys"]
    return keys


def text_of(keys: Keys) -> str:
    return json.dumps({"keys": keys})


def pepper(size: int = 32, **members: Any) -> dict[str, Any]:
    secret = urlsafe_b64encode(b"p" * size).rstrip(b"=").decode()
    return {"kty": "oct", "k": secret, "kid": "1", "state": "active"} | members


def with_seal_keys(*seal_keys: Any) -> str:
    return json.dumps({"keys": key_set(), "seal_keys": seal_keys})


def changed_seal_key(**members: Any) -> str:
    """A key set with two seal keys, of which the second has these members."""
    return with_seal_keys(new_seal_key(1, "active"), new_seal_key(2, "next") | members)


def with_signing(key: ECKey | OKPKey | RSAKey, alg: str, *, private: bool = True) -> Keys:
    """A key set with this signing key and correct metadata."""
    return [{**key.as_dict(private=private), "alg": alg, "kid": key.thumbprint(), "state": "active"}, pepper()]


def changed(index: int, **members: Any) -> Keys:
    keys = key_set()
    keys[index] |= members
    return keys


def without(index: int, member: str) -> Keys:
    keys = key_set()
    del keys[index][member]
    return keys


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_a_generated_key_set_can_be_read(algorithm: Any) -> None:
    ring = parse_key_ring(generate_key_set(algorithm), source="here")

    assert ring.signing[ring.active].alg == algorithm
    assert set(ring.signing) == {ring.active}
    assert ring.active_pepper == 1
    assert len(ring.peppers[1]) == 32
    assert ring.active_seal_key == 1
    assert len(ring.seal_keys[1]) == 32
    assert ring.retiring_seal_keys == frozenset()


def test_seal_keys_in_every_state_are_read() -> None:
    keys = [new_seal_key(1, "retiring"), new_seal_key(255, "active"), new_seal_key(3, "next")]

    ring = parse_key_ring(with_seal_keys(*keys), source="here")

    assert ring.active_seal_key == 255
    assert {number: urlsafe_b64encode(key).rstrip(b"=").decode() for number, key in ring.seal_keys.items()} == {
        1: keys[0]["k"],
        255: keys[1]["k"],
        3: keys[2]["k"],
    }
    assert ring.retiring_seal_keys == {1}


def test_a_key_set_of_an_earlier_release_has_no_seal_key() -> None:
    ring = parse_key_ring(text_of(key_set()), source="here")

    assert (ring.seal_keys, ring.active_seal_key, ring.retiring_seal_keys) == ({}, None, frozenset())
    assert ring.seal_key(1) is None


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
def test_a_generated_signing_key_names_its_use_and_its_id_cannot_be_parsed_as_an_option(algorithm: Algorithm) -> None:
    # One thumbprint in 64 begins with a hyphen.
    keys = [new_signing_key(algorithm, "next") for _ in range(500)]

    assert {(key["use"], key["alg"], key["state"]) for key in keys} == {("sig", algorithm, "next")}
    assert not any(key["kid"].startswith("-") for key in keys)


def test_each_generated_key_set_is_different() -> None:
    first, second = (parse_key_ring(generate_key_set(), source="here") for _ in range(2))

    assert first.active != second.active
    assert first.peppers != second.peppers


def test_each_purpose_has_a_different_derived_key() -> None:
    ring = parse_key_ring(generate_key_set(), source="here")

    derived = {ring.derive("cursor"), ring.derive("refresh"), ring.peppers[1]}

    assert len(derived) == 3
    assert ring.derive("cursor") == ring.derive("cursor")


def test_derived_keys_do_not_depend_on_the_peppers() -> None:
    signing, first, root = key_set()
    before = parse_key_ring(text_of([signing, first, root]), source="here")
    after = parse_key_ring(text_of([signing, pepper(40, kid="2"), root]), source="here")

    assert after.active_pepper == 2
    assert set(after.peppers) == {2}
    assert after.derive("cursor") == before.derive("cursor")


def test_without_a_root_keys_are_derived_from_the_first_pepper() -> None:
    signing, first, _ = key_set()
    alone = parse_key_ring(text_of([signing, first]), source="here")
    rotated = parse_key_ring(text_of([signing, first | {"state": "retiring"}, pepper(kid="2")]), source="here")

    assert rotated.derive("cursor") == alone.derive("cursor")


def test_keys_derived_from_a_pepper_do_not_change_between_releases() -> None:
    ring = parse_key_ring(text_of([key_set()[0], pepper()]), source="here")

    # HMAC-SHA-256 of "cursor" with the root as the key. The root is HMAC-SHA-256 of "derive" with the pepper, 32 times "p", as
    # the key. The cursors that clients hold depend on this value.
    assert ring.derive("cursor").hex() == "7ebd6eeaba4eb6e67da27da1ea68be2595ea1f7b545c39092f49fdee375d7977"


@pytest.mark.parametrize("kid", ["0", "255"])
def test_the_id_of_a_pepper_fits_into_one_byte(kid: str) -> None:
    ring = parse_key_ring(text_of([key_set()[0], pepper(kid=kid)]), source="here")

    assert ring.active_pepper == int(kid)


def test_adding_the_root_to_a_key_set_does_not_change_derived_keys() -> None:
    without_root = {"keys": key_set()[:2]}
    before = parse_key_ring(json.dumps(without_root), source="here")

    written = with_root(without_root)

    assert parse_key_ring(json.dumps(written), source="here").derive("cursor") == before.derive("cursor")
    assert with_root(written) == written
    # RFC 7517: base64url without padding.
    assert len(written["keys"][-1]["k"]) == 43


def test_every_key_of_the_set_verifies() -> None:
    keys = [{**key_set()[0], "state": state} for state in ("active", "retiring", "next")]
    ring = parse_key_ring(text_of([*keys, pepper()]), source="here")

    assert all(ring.verification_key(key["kid"]) for key in keys)
    assert ring.verification_key("unknown") is None
    assert ring.pepper(1)
    assert ring.pepper(2) is None


def test_the_published_set_has_only_public_members() -> None:
    keys = [without(0, "use")[0], {**json.loads(generate_key_set("EdDSA"))["keys"][0], "state": "next"}, pepper()]
    ring = parse_key_ring(text_of(keys), source="here")

    published = ring.public_set()["keys"]

    assert [set(key) for key in published] == [
        {"kty", "crv", "x", "y", "kid", "use", "alg"},
        {"kty", "crv", "x", "kid", "use", "alg"},
    ]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: "", id="empty"),
        pytest.param(lambda: "{", id="not JSON"),
        pytest.param(lambda: "[" * 100_000, id="nested deeply"),
        pytest.param(lambda: "null", id="null"),
        pytest.param(lambda: "[]", id="a list"),
        pytest.param(lambda: '{"keys": 1}', id="keys a number"),
        pytest.param(lambda: '{"keys": [1]}', id="a key that is a number"),
        pytest.param(lambda: '{"keys": {}}', id="keys an object"),
        pytest.param(lambda: text_of([]), id="no keys"),
        pytest.param(lambda: text_of([pepper()]), id="no signing key"),
        pytest.param(lambda: text_of(key_set()[:1]), id="no pepper"),
        pytest.param(lambda: text_of(changed(0, state="next")), id="no active signing key"),
        pytest.param(lambda: text_of(changed(1, state="retiring")), id="no active pepper"),
        pytest.param(lambda: text_of([key_set()[0], *key_set()]), id="two active signing keys"),
        pytest.param(lambda: text_of([*key_set(), pepper(kid="2")]), id="two active peppers"),
        pytest.param(lambda: text_of([*key_set(), pepper()]), id="two peppers with one id"),
        pytest.param(
            lambda: text_of([*(keys := key_set()), {**keys[0], "state": "retiring"}]), id="two keys with one id"
        ),
        pytest.param(lambda: text_of(changed(0, state="revoked")), id="an unknown state, no active key"),
        pytest.param(
            lambda: text_of([*key_set(), {**key_set()[0], "state": "retired"}]), id="an unknown state beside the active"
        ),
        pytest.param(lambda: text_of(without(0, "state")), id="no state"),
        pytest.param(lambda: text_of(without(0, "kid")), id="no kid"),
        pytest.param(lambda: text_of(without(0, "alg")), id="no alg"),
        pytest.param(lambda: text_of(without(0, "d")), id="a public key"),
        pytest.param(lambda: text_of(without(0, "kty")), id="no kty"),
        pytest.param(lambda: text_of(changed(0, kid="another")), id="a kid that is not the thumbprint"),
        pytest.param(lambda: text_of(changed(0, kid=5)), id="a kid that is a number"),
        pytest.param(lambda: text_of(changed(0, alg="HS256")), id="a symmetric alg"),
        pytest.param(lambda: text_of(changed(0, alg="EdDSA")), id="the alg of another key type"),
        pytest.param(lambda: text_of(changed(0, d="AAAA")), id="a private part that does not match the public one"),
        pytest.param(lambda: text_of(changed(0, use="enc")), id="a key for encryption"),
        pytest.param(lambda: text_of(with_signing(ECKey.generate_key("P-384"), "ES256")), id="another curve"),
        pytest.param(
            lambda: text_of(with_signing(OKPKey.generate_key("X25519"), "EdDSA")), id="a key that cannot sign"
        ),
        pytest.param(
            lambda: text_of(with_signing(OKPKey.generate_key("Ed448"), "EdDSA")), id="the larger Edwards curve"
        ),
        pytest.param(lambda: text_of(with_signing(RSAKey.generate_key(2048), "RS256")), id="an RSA key"),
        pytest.param(lambda: text_of(changed(1, k="c2hvcnQ")), id="a short pepper"),
        pytest.param(lambda: text_of([key_set()[0], pepper(31)]), id="a pepper one byte short"),
        pytest.param(lambda: text_of(changed(1, k=5)), id="a pepper that is a number"),
        pytest.param(lambda: text_of(changed(1, kid="one")), id="a pepper whose id is not a number"),
        pytest.param(lambda: text_of(changed(1, kid="256")), id="a pepper whose id needs two bytes"),
        pytest.param(lambda: text_of(changed(1, kid="-1")), id="a pepper with a negative id"),
        pytest.param(lambda: text_of(without(1, "k")), id="a pepper without its secret"),
        pytest.param(lambda: text_of(changed(2, k="c2hvcnQ")), id="a short root"),
        pytest.param(lambda: text_of([*key_set(), key_set()[2]]), id="two roots"),
        pytest.param(lambda: text_of(changed(1, state="revoked")), id="a pepper in an unknown state"),
        pytest.param(lambda: text_of([*key_set(), new_seal_key(1, "active")]), id="a seal key among the other keys"),
        pytest.param(lambda: json.dumps({"keys": key_set(), "seal_keys": None}), id="seal keys null"),
        pytest.param(lambda: with_seal_keys(1), id="a seal key that is a number"),
        pytest.param(lambda: with_seal_keys(new_seal_key(1, "next")), id="no active seal key"),
        pytest.param(lambda: changed_seal_key(state="active"), id="two active seal keys"),
        pytest.param(lambda: changed_seal_key(state="revoked"), id="a seal key in an unknown state"),
        pytest.param(lambda: changed_seal_key(kid="seal-1"), id="two seal keys with one id"),
        pytest.param(lambda: changed_seal_key(kid="2"), id="a seal key with the id of a pepper"),
        pytest.param(lambda: changed_seal_key(kid=2), id="a seal key whose id is a number"),
        pytest.param(lambda: changed_seal_key(kid="seal-02"), id="a seal key with a zero before its number"),
        pytest.param(lambda: changed_seal_key(kid="seal-0"), id="a seal key with the number 0"),
        pytest.param(lambda: changed_seal_key(kid="seal-256"), id="a seal key whose number needs two bytes"),
        pytest.param(lambda: changed_seal_key(kty="EC"), id="a seal key of another type"),
        pytest.param(lambda: changed_seal_key(use="enc"), id="a seal key for another use"),
        pytest.param(lambda: changed_seal_key(k=pepper(31)["k"]), id="a seal key one byte short"),
        pytest.param(lambda: changed_seal_key(k=pepper(33)["k"]), id="a seal key one byte long"),
    ],
)
def test_an_invalid_key_set_is_rejected_with_a_text_that_does_not_quote_it(make: Callable[[], str]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_key_ring(make(), source="here")

    assert str(refused.value) == BROKEN
    # A chained error could quote the content in the log.
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_keys_are_read_from_the_environment() -> None:
    text = generate_key_set()

    ring = load_key_ring(AuthSettings(signing_keys=SecretStr(text)))

    assert ring.active == json.loads(text)["keys"][0]["kid"]


def test_the_error_for_invalid_keys_in_the_environment_names_the_variable() -> None:
    with pytest.raises(ConfigurationError, match=r"^APP_AUTH__SIGNING_KEYS: this is not a private key set"):
        load_key_ring(AuthSettings(signing_keys=SecretStr("{}")))


def test_keys_are_read_from_a_file(tmp_path: Path) -> None:
    text = generate_key_set()
    file = tmp_path / "keys.json"
    file.write_text(text)

    ring = load_key_ring(AuthSettings(signing_keys_file=file))

    assert ring.active == json.loads(text)["keys"][0]["kid"]


def test_the_environment_has_precedence_over_the_file(tmp_path: Path) -> None:
    text = generate_key_set()

    ring = load_key_ring(AuthSettings(signing_keys=SecretStr(text), signing_keys_file=tmp_path / "missing"))

    assert ring.active == json.loads(text)["keys"][0]["kid"]


def test_the_error_for_missing_keys_says_how_to_create_them() -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_key_ring(AuthSettings())

    assert str(refused.value) == "APP_AUTH__SIGNING_KEYS_FILE: is missing; create one with `app keys generate`"


def test_the_error_for_a_missing_file_names_it(tmp_path: Path) -> None:
    file = tmp_path / "missing.json"

    with pytest.raises(ConfigurationError) as refused:
        load_key_ring(AuthSettings(signing_keys_file=file))

    assert str(refused.value) == f"{file}: the signing keys cannot be read: No such file or directory"


def test_the_error_for_a_folder_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_key_ring(AuthSettings(signing_keys_file=tmp_path))

    assert str(refused.value) == f"{tmp_path}: the signing keys cannot be read: Is a directory"


def test_the_error_for_a_binary_file_names_it_without_its_content(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(b"\xff\xfesecret")

    with pytest.raises(ConfigurationError) as refused:
        load_key_ring(AuthSettings(signing_keys_file=file))

    assert str(refused.value) == f"{file}: the signing keys cannot be read: not a text file"


def test_the_error_for_an_invalid_file_names_it_without_its_content(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": ["canary"]}')

    with pytest.raises(ConfigurationError) as refused:
        load_key_ring(AuthSettings(signing_keys_file=file))

    assert str(refused.value) == f"{file}: this is not a private key set in the format of `app keys generate`"


def test_a_key_ring_does_not_show_its_secrets() -> None:
    keys = key_set()
    ring = parse_key_ring(text_of(keys), source="here")

    shown = repr(ring)

    assert keys[0]["d"] not in shown
    assert repr(ring.peppers[1]) not in shown


def test_a_key_ring_does_not_show_its_seal_keys() -> None:
    ring = parse_key_ring(generate_key_set(), source="here")

    assert repr(ring.seal_keys[1]) not in repr(ring)


# Reloading


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(generate_key_set())
    return path


@pytest.fixture
def ring(file: Path) -> KeyRing:
    return load_key_ring(AuthSettings(signing_keys_file=file))


def replace(file: Path, content: str) -> None:
    """Replace the file in one step, as the commands do: no reader sees an incomplete file."""
    staging = file.with_suffix(".new")
    staging.write_text(content)
    staging.replace(file)


def rotated(file: Path) -> Keys:
    """The keys of the file, retiring, with a new active signing key and pepper."""
    signing, first, root = json.loads(file.read_text())["keys"]
    return [key_set()[0], signing | {"state": "retiring"}, pepper(kid="2"), first | {"state": "retiring"}, root]


async def test_a_changed_file_is_reloaded_while_the_process_runs(file: Path, ring: KeyRing) -> None:
    keys = rotated(file)
    cursor = ring.derive("cursor")

    async with reloading(ring):
        replace(file, text_of(keys))
        async with asyncio.timeout(10):
            while ring.active != keys[0]["kid"]:  # noqa: ASYNC110  # No event announces the reload.
                await asyncio.sleep(0.01)

    assert set(ring.signing) == {keys[0]["kid"], keys[1]["kid"]}
    assert (ring.active_pepper, set(ring.peppers)) == (2, {1, 2})
    assert ring.derive("cursor") == cursor


def test_every_change_is_loaded_and_logged(file: Path, ring: KeyRing, caplog: pytest.LogCaptureFixture) -> None:
    for keys in (rotated(file), key_set()):
        replace(file, text_of(keys))
        caplog.clear()

        with caplog.at_level("INFO", logger="app.core.security.keys"):
            ring.reload_if_changed()

        (record,) = caplog.records
        assert record.message == "keys reloaded"
        assert (vars(record)["signing_key"], vars(record)["pepper_id"]) == (ring.active, ring.active_pepper)
        assert ring.active == keys[0]["kid"]


def test_an_unknown_key_id_reloads_the_file_at_once(file: Path, ring: KeyRing) -> None:
    keys = rotated(file)
    replace(file, text_of(keys))

    assert ring.verification_key(keys[0]["kid"])
    assert ring.active == keys[0]["kid"]


def test_an_unknown_pepper_id_reloads_the_file_at_once(file: Path, ring: KeyRing) -> None:
    replace(file, text_of(rotated(file)))

    assert ring.pepper(2)
    assert ring.active_pepper == 2


def test_an_unknown_seal_key_reloads_the_file_at_once(file: Path, ring: KeyRing) -> None:
    first = json.loads(file.read_text())["seal_keys"][0]
    replace(file, with_seal_keys(first | {"state": "retiring"}, new_seal_key(2, "active")))

    assert ring.seal_key(2)
    assert (ring.active_seal_key, ring.retiring_seal_keys) == (2, frozenset({1}))


def test_seal_keys_that_the_file_lost_are_forgotten_after_the_reload(file: Path, ring: KeyRing) -> None:
    assert ring.seal_key(1)
    replace(file, text_of(key_set()))

    ring.reload_if_changed()

    assert (ring.seal_keys, ring.active_seal_key) == ({}, None)


def test_a_removed_key_verifies_nothing_after_the_reload(file: Path, ring: KeyRing) -> None:
    keys, removed = rotated(file), ring.active
    replace(file, text_of([key for key in keys if key.get("kid") not in {removed, "1"}]))

    ring.reload_if_changed()

    assert ring.verification_key(removed) is None
    assert ring.pepper(1) is None


def test_a_changed_root_takes_effect_at_the_next_start(file: Path, ring: KeyRing) -> None:
    before = ring.derive("cursor")
    replace(file, generate_key_set())

    ring.reload_if_changed()

    assert ring.derive("cursor") == before
    assert load_key_ring(AuthSettings(signing_keys_file=file)).derive("cursor") != before


@pytest.mark.parametrize("content", ["", '{"keys": ["canary"]}'])
def test_an_invalid_file_changes_nothing_and_is_logged_once(
    file: Path, ring: KeyRing, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    good, active = file.read_text(), ring.active
    replace(file, content)

    for _ in range(3):
        ring.reload_if_changed()

    assert ring.active == active
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message == "key file rejected, keys unchanged"
    assert record.__dict__["reason"] == f"{file}: this is not a private key set in the format of `app keys generate`"
    assert "canary" not in caplog.text
    replace(file, good)
    ring.reload_if_changed()
    assert ring.active == active


def test_a_deleted_file_changes_nothing_until_it_exists_again(
    file: Path, ring: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    keys = rotated(file)
    active = ring.active
    file.unlink()

    for _ in range(3):
        ring.reload_if_changed()

    assert ring.active == active
    assert [record.__dict__["reason"] for record in caplog.records] == [
        f"{file}: the signing keys cannot be read: No such file or directory"
    ]
    file.write_text(text_of(keys))
    ring.reload_if_changed()
    assert ring.active == keys[0]["kid"]


def test_keys_from_the_environment_never_change() -> None:
    ring = load_key_ring(AuthSettings(signing_keys=SecretStr(generate_key_set())))
    active = ring.active

    ring.reload_if_changed()

    assert ring.active == active
