"""The private key set: what is read, and that a broken one is refused without showing any of it."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey, OKPKey, RSAKey
from pydantic import SecretStr

from app.core.config import AuthSettings
from app.core.errors import ConfigurationError
from app.core.keys import generate_key_set, load_key_ring, parse_key_ring

type Keys = list[dict[str, Any]]

BROKEN = "here: this is not a private key set as `app keys generate` makes it"


def key_set() -> Keys:
    """A signing key and a pepper, both active."""
    keys: Keys = json.loads(generate_key_set())["keys"]
    return keys


def text_of(keys: Keys) -> str:
    return json.dumps({"keys": keys})


def pepper(size: int = 32, **members: Any) -> dict[str, Any]:
    secret = urlsafe_b64encode(b"p" * size).rstrip(b"=").decode()
    return {"kty": "oct", "k": secret, "kid": "1", "state": "active"} | members


def with_signing(key: ECKey | OKPKey | RSAKey, alg: str, *, private: bool = True) -> Keys:
    """The key set with another signing key, described correctly."""
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
    assert ring.states == {ring.active: "active"}
    assert ring.active_pepper == 1
    assert len(ring.peppers[1]) == 32


def test_each_generated_key_set_is_another() -> None:
    first, second = (parse_key_ring(generate_key_set(), source="here") for _ in range(2))

    assert first.active != second.active
    assert first.peppers != second.peppers


def test_each_purpose_gets_a_key_of_its_own() -> None:
    ring = parse_key_ring(generate_key_set(), source="here")

    derived = {ring.derive("cursor"), ring.derive("refresh"), ring.peppers[1]}

    assert len(derived) == 3
    assert ring.derive("cursor") == ring.derive("cursor")


def test_the_key_of_a_purpose_comes_from_the_active_pepper() -> None:
    keys = [key_set()[0], pepper(state="retiring"), pepper(40, kid="2")]
    ring = parse_key_ring(text_of(keys), source="here")
    alone = parse_key_ring(text_of([keys[0], keys[2]]), source="here")

    assert ring.active_pepper == 2
    assert set(ring.peppers) == {1, 2}
    assert ring.derive("cursor") == alone.derive("cursor")


def test_only_active_and_retiring_keys_verify() -> None:
    keys = [{**key_set()[0], "state": state} for state in ("active", "retiring", "next")]
    ring = parse_key_ring(text_of([*keys, pepper()]), source="here")

    verifying = [ring.verifying(key["kid"]) is not None for key in keys]

    assert verifying == [True, True, False]
    assert ring.verifying("unknown") is None


def test_the_published_set_has_public_members_alone() -> None:
    keys = [key_set()[0], {**json.loads(generate_key_set("EdDSA"))["keys"][0], "state": "next"}, pepper()]
    ring = parse_key_ring(text_of(keys), source="here")

    published = ring.public_set()["keys"]

    assert [set(key) for key in published] == [
        {"kty", "crv", "x", "y", "kid", "use", "alg"},
        {"kty", "crv", "x", "kid", "use", "alg"},
    ]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: "", id="nothing"),
        pytest.param(lambda: "{", id="no JSON"),
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
        pytest.param(lambda: text_of([*key_set(), pepper()]), id="two peppers of one id"),
        pytest.param(
            lambda: text_of([*(keys := key_set()), {**keys[0], "state": "retiring"}]), id="two keys of one id"
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
        pytest.param(lambda: text_of(changed(0, alg="EdDSA")), id="the alg of another kind"),
        pytest.param(lambda: text_of(changed(0, d="AAAA")), id="halves that do not belong together"),
        pytest.param(lambda: text_of(changed(0, use="enc")), id="a key for encryption"),
        pytest.param(lambda: text_of(with_signing(ECKey.generate_key("P-384"), "ES256")), id="another curve"),
        pytest.param(
            lambda: text_of(with_signing(OKPKey.generate_key("X25519"), "EdDSA")), id="a key that signs nothing"
        ),
        pytest.param(
            lambda: text_of(with_signing(OKPKey.generate_key("Ed448"), "EdDSA")), id="the larger Edwards curve"
        ),
        pytest.param(lambda: text_of(with_signing(RSAKey.generate_key(2048), "RS256")), id="an RSA key"),
        pytest.param(lambda: text_of(changed(1, k="c2hvcnQ")), id="a short pepper"),
        pytest.param(lambda: text_of([key_set()[0], pepper(31)]), id="a pepper one byte short"),
        pytest.param(lambda: text_of(changed(1, k=5)), id="a pepper that is a number"),
        pytest.param(lambda: text_of(changed(1, kid="one")), id="a pepper without a number"),
        pytest.param(lambda: text_of(without(1, "k")), id="a pepper without its secret"),
        pytest.param(lambda: text_of(changed(1, state="revoked")), id="a pepper in an unknown state"),
    ],
)
def test_a_broken_key_set_is_refused_in_one_sentence(make: Callable[[], str]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_key_ring(make(), source="here")

    assert str(refused.value) == BROKEN
    # A chained error would bring the content into the log.
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_keys_come_from_the_environment() -> None:
    text = generate_key_set()

    ring = load_key_ring(AuthSettings(signing_keys=SecretStr(text)))

    assert ring.active == json.loads(text)["keys"][0]["kid"]


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    text = generate_key_set()
    file = tmp_path / "keys.json"
    file.write_text(text)

    ring = load_key_ring(AuthSettings(signing_keys_file=file))

    assert ring.active == json.loads(text)["keys"][0]["kid"]


def test_the_environment_comes_before_the_file(tmp_path: Path) -> None:
    text = generate_key_set()

    ring = load_key_ring(AuthSettings(signing_keys=SecretStr(text), signing_keys_file=tmp_path / "missing"))

    assert ring.active == json.loads(text)["keys"][0]["kid"]


def test_without_keys_the_sentence_says_how_to_make_them() -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_key_ring(AuthSettings())

    assert str(refused.value) == "APP_AUTH__SIGNING_KEYS_FILE: is missing; make one with `app keys generate`"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "missing.json"

    with pytest.raises(ConfigurationError) as refused:
        load_key_ring(AuthSettings(signing_keys_file=file))

    assert str(refused.value) == f"{file}: the signing keys cannot be read: No such file or directory"


def test_a_folder_instead_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_key_ring(AuthSettings(signing_keys_file=tmp_path))

    assert str(refused.value) == f"{tmp_path}: the signing keys cannot be read: Is a directory"


def test_a_file_that_is_no_text_is_named_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(b"\xff\xfesecret")

    with pytest.raises(ConfigurationError) as refused:
        load_key_ring(AuthSettings(signing_keys_file=file))

    assert str(refused.value) == f"{file}: the signing keys cannot be read: not a text file"


def test_a_broken_file_is_named_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": ["canary"]}')

    with pytest.raises(ConfigurationError) as refused:
        load_key_ring(AuthSettings(signing_keys_file=file))

    assert str(refused.value) == f"{file}: this is not a private key set as `app keys generate` makes it"


def test_a_key_ring_does_not_show_its_secrets() -> None:
    keys = key_set()
    ring = parse_key_ring(text_of(keys), source="here")

    shown = repr(ring)

    assert keys[0]["d"] not in shown
    assert repr(ring.peppers[1]) not in shown
