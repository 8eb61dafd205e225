"""One-time passwords, against the vectors of RFC 6238 and against another implementation."""

from urllib.parse import parse_qs, unquote, urlsplit

import pyotp
import pytest

from app.factors import totp

SECRET = b"12345678901234567890"
NOW = 1_700_000_000
STEP = NOW // totp.PERIOD


@pytest.mark.parametrize(
    ("instant", "code"),
    [
        (59, "287082"),
        (1111111109, "081804"),
        (1111111111, "050471"),
        (1234567890, "005924"),
        (2000000000, "279037"),
        (20000000000, "353130"),
    ],
)
def test_codes_are_those_of_rfc_6238(instant: int, code: str) -> None:
    # The RFC prints eight digits. Six digits are the last six of these.
    assert totp.code_at(SECRET, instant // totp.PERIOD) == code


def test_codes_are_those_of_pyotp() -> None:
    secret = totp.new_secret()
    other = pyotp.TOTP(totp.encoded(secret))

    assert len(secret) == 20
    assert [totp.code_at(secret, step) for step in range(STEP, STEP + 200)] == [
        other.at(step * totp.PERIOD) for step in range(STEP, STEP + 200)
    ]


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_code_matches_its_own_step(offset: int) -> None:
    assert totp.matching_step(SECRET, totp.code_at(SECRET, STEP + offset), NOW) == STEP + offset


@pytest.mark.parametrize("offset", [-2, 2])
def test_a_code_outside_of_the_drift_matches_no_step(offset: int) -> None:
    assert totp.matching_step(SECRET, totp.code_at(SECRET, STEP + offset), NOW) is None


@pytest.mark.parametrize("code", ["", "000000", "0", "١٢٣٤٥٦", "081804 "])
def test_a_wrong_code_matches_no_step(code: str) -> None:
    assert totp.matching_step(SECRET, code, NOW) is None


def test_a_code_of_two_steps_matches_the_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totp, "code_at", lambda _secret, _step: "123456")

    assert totp.matching_step(SECRET, "123456", NOW) == STEP + 1


def test_an_app_reads_the_uri() -> None:
    uri = totp.uri(SECRET, issuer="Acme: bread & water", account="ada+b@example.com")

    read = pyotp.parse_uri(uri)
    assert isinstance(read, pyotp.TOTP)
    assert (read.secret, read.issuer, read.name) == (totp.encoded(SECRET), "Acme bread & water", "ada+b@example.com")
    assert (read.digits, read.interval, read.digest().name) == (6, 30, "sha1")
    parts = urlsplit(uri)
    assert unquote(parts.path) == "/Acme bread & water:ada+b@example.com"
    assert parse_qs(parts.query)["algorithm"] == ["SHA1"]
