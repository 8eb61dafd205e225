"""Forged, damaged and expired access tokens, sent as clients send them."""

import asyncio
import json
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from httpx2 import AsyncClient, Response
from joserfc import jwe
from joserfc.jwk import ECKey

from app.auth.access.tokens import MAX_LIFETIME, AccessTokens
from app.auth.errors import InvalidTokenError
from app.auth.settings import issuer
from app.core import product
from app.core.db.database import Database
from app.core.security.keys import generate_key_set, parse_key_ring
from app.main import create_app
from tests.auth.conftest import Target
from tests.auth.forge import MISSING, Forge, decode, encode, private_key, read_part, sign, signing_jwk
from tests.auth.released_claims import RELEASED_HEADER, RELEASED_LENGTHS, ReleasedClaims
from tests.conftest import KEY_SET, LoggedIn, make_settings, running

ME = "/api/v1/users/me"
REFUSED = {
    "type": "/problems/unauthorized",
    "title": "Unauthorized",
    "status": 401,
    "detail": "The access token is not valid. Refresh it, or log in again.",
    "instance": ME,
    "code": "invalid_token",
}
CHALLENGE = f'Bearer realm="{product.SLUG}", error="invalid_token", error_description="The access token is not valid"'
TEN_YEARS = 10 * 365 * 24 * 3600

type Forgery = Callable[[Forge], str]


async def send(client: AsyncClient, token: str) -> Response:
    return await client.get(ME, headers={"Authorization": f"Bearer {token}"})


def assert_refused(response: Response) -> None:
    """One answer for every cause: nothing tells an attacker how close the forgery came."""
    document = response.json()
    assert document.pop("request_id") == response.headers["X-Request-ID"]
    assert (response.status_code, document) == (401, REFUSED)
    assert response.headers.get_list("WWW-Authenticate") == [CHALLENGE]
    assert response.headers["Cache-Control"] == "no-store"


def now() -> int:
    return int(time.time())


def whole(claims: Callable[[dict[str, Any]], bytes | dict[str, Any]]) -> Forgery:
    """Replace the claims as a whole."""
    return lambda forge: forge.signed(forge.header, claims(forge.claims))


def claim(name: str, value: Any) -> Forgery:
    return lambda forge: forge.with_claims(**{name: value})


def claim_text(name: str, text: str) -> Forgery:
    """Write the value of a claim as this JSON text, which no JSON library would write."""
    marker = "\x00here\x00"
    return lambda forge: forge.signed(
        forge.header, json.dumps(forge.claims | {name: marker}).replace(json.dumps(marker), text).encode()
    )


def header(**members: Any) -> Forgery:
    return lambda forge: forge.with_header(**members)


def other_key(**members: Any) -> Forgery:
    """Sign with a key of the attacker's own, which the header brings along."""
    theirs = signing_jwk(generate_key_set())
    public = {name: theirs[name] for name in ("kty", "crv", "x", "y")}
    return lambda forge: sign(
        f"{encode(forge.header | ({'jwk': public} if 'jwk' in members else members))}.{encode(forge.claims)}", theirs
    )


def five_parts(**members: Any) -> Forgery:
    """Return a function that writes an encrypted token, which would be expensive to decrypt."""
    head = {"alg": "PBES2-HS256+A128KW", "enc": "A128GCM", "typ": "at+jwt", **members}
    return lambda forge: f"{encode(head | {'kid': forge.jwk['kid']})}.AAAA.AAAA.AAAA.AAAA"


def encrypted(forge: Forge) -> str:
    """Encrypt a valid token to our own public key."""
    head = {"alg": "ECDH-ES", "enc": "A128GCM", "typ": "at+jwt", "kid": forge.jwk["kid"], "cty": "JWT"}
    return jwe.encrypt_compact(head, forge.token, ECKey.import_key(forge.public_jwk))


def resigned_as_der(forge: Forge) -> str:
    """Give the right signature in the encoding that X.509 uses and JWS does not."""
    signing_input, _, signature = forge.token.rpartition(".")
    raw = decode(signature)
    return f"{signing_input}.{encode(encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:])))}"


def with_signature(change: Callable[[bytes], bytes]) -> Forgery:
    def forgery(forge: Forge) -> str:
        signing_input, _, signature = forge.token.rpartition(".")
        return f"{signing_input}.{encode(change(decode(signature)))}"

    return forgery


def stray_bits(index: int) -> Forgery:
    """Set the bits of a part's last character that its bytes do not use: other text, same content. Part 3 is none."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

    def forgery(forge: Forge) -> str:
        # A space more in the JSON makes the length one that leaves bits unused.
        texts = [json.dumps(part) for part in (forge.header, forge.claims)]
        parts = [encode(text.encode() + b" " * (-len(text) % 3 + 1)) for text in texts]
        if index < 2:
            parts[index] = parts[index][:-1] + alphabet[alphabet.index(parts[index][-1]) + 1]
        token = sign(".".join(parts), forge.jwk)
        return token[:-1] + alphabet[alphabet.index(token[-1]) + 1] if index == 2 else token

    return forgery


def standard_alphabet(forge: Forge) -> str:
    """Encode the claims with `+` and `/`, signed as such."""
    claims = json.dumps(forge.claims | {"jti": "\u00fb\u00ff\u00fe>>>???"}, ensure_ascii=False).encode()
    text = b64encode(claims).rstrip(b"=").decode()
    assert text != urlsafe_b64encode(claims).rstrip(b"=").decode()
    return sign(f"{encode(forge.header)}.{text}", forge.jwk)


def duplicated(part: str, member: str) -> Forgery:
    """Write a member twice, both times with the right value."""

    def text(members: dict[str, Any]) -> bytes:
        return f"{json.dumps(members)[:-1]},{json.dumps(member)}:{json.dumps(members[member])}}}".encode()

    if part == "header":
        return lambda forge: forge.signed(text(forge.header), forge.claims)
    return lambda forge: forge.signed(forge.header, text(forge.claims))


HEADERS: dict[str, Forgery] = {
    "alg none, no signature": lambda forge: forge.unsigned("none"),
    "alg none, some signature": lambda forge: forge.unsigned("none", "AAAA"),
    "alg None, the right signature": lambda forge: forge.unsigned("None", forge.token.rpartition(".")[2]),
    "alg missing": header(alg=MISSING),
    "alg null": header(alg=None),
    "alg a list": header(alg=["ES256"]),
    "alg in lower case": header(alg="es256"),
    "alg of another curve": header(alg="ES384"),
    "alg of another kind of key": header(alg="EdDSA"),
    "alg of RSA": header(alg="RS256"),
    "HS256 with our public key as PEM": lambda forge: forge.mac(
        forge.public(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    ),
    "HS256 with our public key as DER": lambda forge: forge.mac(
        forge.public(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ),
    "HS256 with our public key as a point": lambda forge: forge.mac(
        forge.public(Encoding.X962, PublicFormat.UncompressedPoint)
    ),
    "HS256 with our public key as JWK": lambda forge: forge.mac(json.dumps(forge.public_jwk).encode()),
    "HS256 with our public coordinate": lambda forge: forge.mac(decode(forge.jwk["x"])),
    "HS256 with nothing": lambda forge: forge.mac(b""),
    "HS256 with a common secret": lambda forge: forge.mac(b"secret"),
    "HS256 with our name": lambda forge: forge.mac(product.SLUG.encode()),
    "a key of the attacker's in jwk": other_key(jwk=True),
    "a key of the attacker's under our kid": other_key(),
    "our own key repeated in jwk": lambda forge: forge.with_header(jwk=forge.public_jwk),
    "jku": header(jku="https://127.0.0.1:1/keys.json"),
    "jku of a file": header(jku="file:///etc/passwd"),
    "x5u": header(x5u="http://[::1]:1/chain.pem"),
    "x5c": header(x5c=["AAAA"]),
    "crit with an unknown name": header(crit=["x"]),
    "crit empty": header(crit=[]),
    "crit b64": header(crit=["b64"], b64=False),
    "crit not a list": header(crit="b64"),
    "a member of no meaning": header(extra=1),
    "cty": header(cty="JWT"),
    "kid missing": header(kid=MISSING),
    "kid unknown": header(kid="unknown"),
    "kid null": header(kid=None),
    "kid a list": header(kid=["x"]),
    "kid a path": header(kid="../../../dev/null"),
    "kid with SQL": header(kid="' OR 1=1 --"),
    "typ missing": header(typ=MISSING),
    "typ JWT": header(typ="JWT"),
    "typ of a security event": header(typ="secevent+jwt"),
    "typ of an id token": header(typ="id+jwt"),
    "typ a number": header(typ=5),
    "typ null": header(typ=None),
    "typ with a parameter": header(typ="at+jwt; charset=utf-8"),
    "alg twice": duplicated("header", "alg"),
    "kid twice": duplicated("header", "kid"),
    "header longer than 512 bytes": lambda forge: forge.signed(
        json.dumps(forge.header).encode() + b" " * 400, forge.claims
    ),
    "header a list": lambda forge: forge.signed(json.dumps(list(forge.header)).encode(), forge.claims),
    "header not JSON": lambda forge: forge.signed(b"{", forge.claims),
    "header not UTF-8": lambda forge: forge.signed(b'{"alg":"\xff"}', forge.claims),
    "header in UTF-16": lambda forge: forge.signed(json.dumps(forge.header).encode("utf-16"), forge.claims),
    "header nested deeply": lambda forge: forge.signed(b"[" * 380, forge.claims),
}

CLAIMS: dict[str, Forgery] = {
    **{
        f"{name} {description}": claim(name, value)
        for name in ("exp", "iat", "auth_time")
        for description, value in {
            "missing": MISSING,
            "null": None,
            "a string": str(now() + 300),
            "a bool": True,
            "a list": [now() + 300],
            "an object": {},
            "a float": now() + 0.5,
            "zero": 0,
            "negative": -1,
            "in milliseconds": (now() + 300) * 1000,
            "in ten years": now() + TEN_YEARS,
            "ten years ago": now() - TEN_YEARS,
        }.items()
    },
    **{
        f"{name} {text[:12]}": claim_text(name, text)
        for name in ("exp", "iat", "auth_time")
        for text in ("1" + "0" * 400, "1e999", "-1e999", "NaN", "Infinity", "1e10")
    },
    "exp of 400 digits and more than the parser reads": claim_text("exp", "9" * 4300),
    "exp just over": lambda forge: forge.with_claims(exp=now() - 1, iat=now() - 300),
    "exp before iat": lambda forge: forge.with_claims(exp=now() + 10, iat=now() + 20),
    "exp at iat": lambda forge: forge.with_claims(exp=now() + 10, iat=now() + 10),
    "longer than fifteen minutes": lambda forge: forge.with_claims(iat=now(), exp=now() + MAX_LIFETIME + 1),
    "issued in a minute": lambda forge: forge.with_claims(iat=now() + 60),
    "logged in in a minute": lambda forge: forge.with_claims(auth_time=now() + 60),
    "nbf to come": claim("nbf", now() + 3600),
    "aud missing": claim("aud", MISSING),
    "aud null": claim("aud", None),
    "aud of another service": claim("aud", f"not-{product.SLUG}"),
    "aud that contains ours": claim("aud", f"{product.SLUG}-staging"),
    "aud contained in ours": claim("aud", product.SLUG[:-1]),
    "aud in upper case": claim("aud", product.SLUG.upper()),
    "aud a list without ours": claim("aud", [f"not-{product.SLUG}", f"{product.SLUG}2"]),
    "aud an empty list": claim("aud", []),
    "aud an object with ours": claim("aud", {product.SLUG: True}),
    "aud a nested list": claim("aud", [[product.SLUG]]),
    "iss missing": claim("iss", MISSING),
    "iss null": claim("iss", None),
    "iss of another": claim("iss", "https://evil.example"),
    "iss with a slash more": lambda forge: forge.with_claims(iss=forge.claims["iss"] + "/"),
    "iss a list": lambda forge: forge.with_claims(iss=[forge.claims["iss"]]),
    "client_id missing": claim("client_id", MISSING),
    "client_id of another": claim("client_id", "third-party"),
    **{
        f"{name} {description}": claim(name, value)
        for name in ("sub", "sid")
        for description, value in {
            "missing": MISSING,
            "null": None,
            "a number": 5,
            "a bool": True,
            "a list": [],
            "empty": "",
            "an address": "user1@example.com",
            "an unknown id's digits": "0" * 31,
        }.items()
    },
    **{
        f"{name} {description}": lambda forge, name=name, spell=spell: forge.with_claims(  # type: ignore[misc]  # Defaults bind the loop's values.
            **{name: spell(UUID(forge.claims[name]))}
        )
        for name in ("sub", "sid")
        for description, spell in {
            "in upper case": lambda uuid: f"A{str(uuid)[1:]}",
            "without dashes": lambda uuid: uuid.hex,
            "in braces": lambda uuid: f"{{{uuid}}}",
            "as a URN": lambda uuid: uuid.urn,
            "with a newline": lambda uuid: f"{uuid}\n",
        }.items()
    },
    "ver missing": claim("ver", MISSING),
    "ver null": claim("ver", None),
    "ver a bool": claim("ver", value=True),
    "ver a string": claim("ver", "1"),
    "ver a float": claim("ver", 1.0),
    "ver of tomorrow": claim("ver", 2),
    "ver negative": claim("ver", -1),
    "ver huge": claim_text("ver", "1" + "0" * 400),
    "jti missing": claim("jti", MISSING),
    "jti a number": claim("jti", 1),
    "scope missing": claim("scope", MISSING),
    "scope null": claim("scope", None),
    "scope a list": claim("scope", ["users:read"]),
    "sub twice": duplicated("claims", "sub"),
    "exp twice": duplicated("claims", "exp"),
    "claims a list": whole(lambda claims: json.dumps([claims]).encode()),
    "claims a string": whole(lambda claims: json.dumps(json.dumps(claims)).encode()),
    "claims null": whole(lambda _: b"null"),
    "claims empty": whole(lambda _: {}),
    "claims not JSON": whole(lambda claims: json.dumps(claims).encode() + b"x"),
    "claims twice": whole(lambda claims: json.dumps(claims).encode() * 2),
    "claims with a comma more": whole(lambda claims: json.dumps(claims).encode()[:-1] + b",}"),
    "claims with a byte order mark": whole(lambda claims: b"\xef\xbb\xbf" + json.dumps(claims).encode()),
    "claims not UTF-8": whole(lambda _: b'{"sub":"\xff"}'),
    "claims nested deeply": whole(lambda _: b'{"sub":' + b"[" * 2000),
    "a claim with a lone surrogate": claim_text("sub", '"\\ud800"'),
}

FORMS: dict[str, Forgery] = {
    "a word": lambda _: "token",
    "two parts": lambda forge: forge.token.rpartition(".")[0],
    "four parts": lambda forge: f"{forge.token}.AAAA",
    "three empty parts": lambda _: "..",
    "an empty header": lambda forge: "." + forge.token.partition(".")[2],
    "an empty signature": lambda forge: forge.token.rpartition(".")[0] + ".",
    "a signature of one character": lambda forge: forge.token.rpartition(".")[0] + ".A",
    "a signature of zeros": with_signature(lambda raw: bytes(len(raw))),
    "a signature with a byte less": with_signature(lambda raw: raw[:-1]),
    "a signature with a byte more": with_signature(lambda raw: raw + b"\0"),
    "a signature with its halves swapped": with_signature(lambda raw: raw[32:] + raw[:32]),
    "a signature with one bit changed": with_signature(lambda raw: bytes([raw[0] ^ 1]) + raw[1:]),
    "a signature in DER": resigned_as_der,
    "stray bits in the header": stray_bits(0),
    "stray bits in the claims": stray_bits(1),
    "stray bits in the signature": stray_bits(2),
    "the signature of another token": lambda forge: (
        forge.token.rpartition(".")[0] + "." + forge.with_claims(jti="other").rpartition(".")[2]
    ),
    "the standard alphabet": standard_alphabet,
    **{
        f"{name} behind it": lambda forge, text=text: forge.token + text  # type: ignore[misc]  # As above.
        for name, text in {
            "a newline": "\n",
            "a space": " ",
            "a tab": "\t",
            "a NUL": "\0",
            "padding": "=",
            "double padding": "==",
            "%20": "%20",
            "a comma": ",",
            "a second token": " Bearer x",
        }.items()
    },
    "a space before it": lambda forge: f" {forge.token}",
    "quotes around it": lambda forge: f'"{forge.token}"',
    "letters beyond ASCII": lambda forge: forge.token[:-1] + "\u00e9",
    "encrypted to our key": encrypted,
    "encrypted with a costly password": five_parts(p2c=2**31, p2s="AAAA"),
    "encrypted and compressed": five_parts(zip="DEF"),
    "one megabyte": lambda _: "A" * 1_000_000,
    "one megabyte in three parts": lambda _: f"{'A' * 333_333}.{'A' * 333_333}.{'A' * 333_333}",
    "ten thousand parts": lambda _: "." * 10_000,
    "ten thousand filled parts": lambda _: ".".join(["A"] * 10_000),
    "a header of 65 KB": lambda forge: forge.with_header(kid="A" * 65_000),
    "just too long": lambda forge: forge.with_claims(jti="A" * 3000),
    "JSON serialisation": lambda forge: json.dumps({"payload": forge.token, "signatures": []}),
}


@pytest.mark.parametrize("forgery", HEADERS.values(), ids=HEADERS.keys())
async def test_a_forged_header_is_refused(target: Target, forgery: Forgery) -> None:
    response = await send(target.client, forgery(target.forge))

    assert_refused(response)


@pytest.mark.parametrize("forgery", CLAIMS.values(), ids=CLAIMS.keys())
async def test_a_signed_token_with_wrong_claims_is_refused(target: Target, forgery: Forgery) -> None:
    response = await send(target.client, forgery(target.forge))

    assert_refused(response)


@pytest.mark.parametrize("forgery", FORMS.values(), ids=FORMS.keys())
async def test_text_that_is_not_a_compact_token_is_refused(target: Target, forgery: Forgery) -> None:
    token = forgery(target.forge)
    response = await target.client.get(ME, headers=[(b"Authorization", b"Bearer " + token.encode())])

    assert_refused(response)


@pytest.mark.parametrize(
    "forgery",
    [
        pytest.param(lambda forge: forge.with_claims(), id="the same again"),
        pytest.param(lambda forge: forge.with_claims(role="admin"), id="claims of a later release"),
        pytest.param(lambda forge: forge.with_claims(acr=MISSING, amr=MISSING), id="claims of the release before"),
        pytest.param(claim("nbf", now() - 10), id="nbf past"),
        pytest.param(header(typ="application/at+jwt"), id="typ with its prefix"),
        pytest.param(header(typ="AT+JWT"), id="typ in upper case"),
        pytest.param(stray_bits(3), id="JSON with spaces"),
        pytest.param(claim("aud", [f"not-{product.SLUG}", product.SLUG]), id="aud a list with ours"),
        pytest.param(lambda forge: forge.with_claims(iat=now() + 3), id="issued by a clock three seconds ahead"),
        pytest.param(lambda forge: forge.with_claims(exp=forge.claims["iat"] + MAX_LIFETIME), id="fifteen minutes"),
        pytest.param(lambda forge: forge.with_claims(iat=now() + 9, exp=now() + 10), id="one second"),
        pytest.param(lambda forge: forge.with_claims(auth_time=now() - 86_400), id="logged in yesterday"),
        pytest.param(claim("auth_time", 1_577_836_800), id="logged in when the dates begin"),
        pytest.param(claim("jti", "\u20ac"), id="a claim beyond ASCII"),
        pytest.param(lambda forge: forge.signed(forge.header, dict(reversed(forge.claims.items()))), id="reordered"),
    ],
)
async def test_a_token_that_follows_the_rules_is_accepted(target: Target, forgery: Forgery) -> None:
    response = await send(target.client, forgery(target.forge))

    assert response.status_code == 200


async def test_either_half_of_a_signature_is_accepted(client: AsyncClient, forge: Forge) -> None:
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    signing_input, _, signature = forge.token.rpartition(".")
    raw = decode(signature)
    mirrored = raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32)

    response = await send(client, f"{signing_input}.{encode(mirrored)}")

    assert response.status_code == 200


async def test_addresses_in_a_token_are_never_visited(client: AsyncClient, forge: Forge) -> None:
    visits: list[object] = []

    async def on_visit(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(writer.get_extra_info("peername"))
        writer.close()

    async with await asyncio.start_server(on_visit, "127.0.0.1", 0) as canary:
        port = canary.sockets[0].getsockname()[1]
        for member in ("jku", "x5u", "iss", "kid"):
            address = f"http://127.0.0.1:{port}/{member}"
            forged = forge.with_claims(iss=address) if member == "iss" else forge.with_header(**{member: address})
            assert_refused(await send(client, forged))

    assert visits == []


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("A" * 1_000_000, id="one megabyte"),
        pytest.param("." * 10_000, id="ten thousand parts"),
        pytest.param(f"{encode({'alg': 'PBES2-HS256+A128KW', 'p2c': 2**31})}.A.A.A.A", id="a costly password"),
        pytest.param(f"{encode(b'[' * 380)}.{encode(b'[' * 2500)}.AAAA", id="deeply nested"),
        pytest.param(f"{encode({'alg': 'ES256', 'kid': 'x', 'typ': 'at+jwt'})}.{'A' * 3900}.AAAA", id="long claims"),
    ],
)
def test_refusing_a_token_takes_no_longer_than_accepting_one(token: str) -> None:
    refusing, accepting = [], []
    for _ in range(20):
        # One of its own each time: it remembers the tokens that it has accepted.
        tokens = AccessTokens(parse_key_ring(KEY_SET, source="tests"), issuer="i", audience="a", lifetime=600)
        good, _ = tokens.issue(
            user_id=uuid4(),
            session_id=uuid4(),
            version=1,
            scopes=[],
            auth_time=now(),
            acr="aal1",
            amr=["pwd"],
            session_ends=now() + 600,
        )

        started = time.process_time()
        tokens.read(good)
        accepted = time.process_time()
        with pytest.raises(InvalidTokenError):
            tokens.read(token)
        refused = time.process_time()

        accepting.append(accepted - started)
        refusing.append(refused - accepted)

    # Twice, for a machine that does not keep time: a signature is what costs most of a token that is accepted.
    assert min(refusing) < 2 * min(accepting)


def test_an_issued_token_has_exactly_the_members_of_the_contract(forge: Forge, user: LoggedIn) -> None:
    claims = forge.claims

    assert forge.header == {"alg": "ES256", "kid": forge.jwk["kid"], "typ": "at+jwt"}
    assert set(claims) == {
        "iss",
        "aud",
        "sub",
        "iat",
        "exp",
        "jti",
        "sid",
        "ver",
        "auth_time",
        "acr",
        "amr",
        "scope",
        "client_id",
    }
    assert claims["sub"] == user.user_id
    assert (claims["acr"], claims["amr"]) == ("aal1", ["pwd"])
    assert claims["exp"] - claims["iat"] == 600
    # `auth_time` is the start of the transaction by the database's clock, `iat` comes from the clock of the process.
    assert abs(claims["auth_time"] - claims["iat"]) <= 10
    assert claims["aud"] == product.SLUG
    assert claims["iss"] == "http://127.0.0.1:8000"


async def test_the_published_key_set_verifies_an_issued_token(client: AsyncClient, forge: Forge) -> None:
    published = (await client.get("/.well-known/jwks.json")).json()["keys"]
    (key,) = (key for key in published if key["kid"] == read_part(forge.token, 0)["kid"])
    signing_input, _, signature = forge.token.rpartition(".")
    raw = decode(signature)
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(decode(key["x"])), int.from_bytes(decode(key["y"])), ec.SECP256R1()
    )

    # Raises InvalidSignature when it does not fit.
    numbers.public_key().verify(
        encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:])),
        signing_input.encode(),
        ec.ECDSA(SHA256()),
    )


async def test_the_published_key_set_has_only_public_members(client: AsyncClient) -> None:
    response = await client.get("/.well-known/jwks.json")

    (key,) = response.json()["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("EC", "P-256", "sig", "ES256")
    assert response.headers["Cache-Control"] == "public, max-age=3600"
    assert signing_jwk(KEY_SET)["d"] not in response.text


def rotated(*states: str) -> tuple[str, list[dict[str, Any]]]:
    """Make a private key set with one signing key of each of these states, and the keys in that order."""
    sets = [json.loads(generate_key_set())["keys"] for _ in states]
    signing = [{**keys[0], "state": state} for keys, state in zip(sets, states, strict=True)]
    return json.dumps({"keys": [*signing, sets[0][1]]}), signing


@pytest.mark.parametrize(
    ("state", "status"),
    [
        pytest.param("active", 200, id="the active key"),
        pytest.param("retiring", 200, id="a retiring key"),
        # Another process may sign with it a moment before this one knows.
        pytest.param("next", 200, id="a key that is to sign next"),
        pytest.param("removed", 401, id="a removed key"),
    ],
)
async def test_a_token_is_accepted_or_refused_by_the_state_of_its_key(
    database_url: str, database: Database, forge: Forge, state: str, status: int
) -> None:
    key_set, keys = rotated("active", "retiring", "next")
    by_state = {key["state"]: key for key in keys} | {"removed": forge.jwk}
    key = by_state[state]
    header = forge.header | {"kid": key["kid"]}
    app = create_app(make_settings(database_url, auth={"signing_keys": key_set}), database)

    async with running(app) as rotated_client:
        response = await send(rotated_client, sign(f"{encode(header)}.{encode(forge.claims)}", key))

    assert response.status_code == status


async def test_all_keys_of_a_rotation_are_published(database_url: str, database: Database) -> None:
    key_set, keys = rotated("next", "active", "retiring")
    app = create_app(make_settings(database_url, auth={"signing_keys": key_set}), database)

    async with running(app) as rotated_client:
        response = await rotated_client.get("/.well-known/jwks.json")

    published = response.json()["keys"]
    assert [key["kid"] for key in published] == [key["kid"] for key in keys]
    assert all("d" not in key and "state" not in key for key in published)


async def test_tokens_can_be_signed_with_ed25519(database_url: str, database: Database, user: LoggedIn) -> None:
    key_set = generate_key_set("EdDSA")
    ring = parse_key_ring(key_set, source="tests")
    settings = make_settings(database_url, auth={"signing_keys": key_set})
    tokens = AccessTokens(ring, issuer=issuer(settings), audience=product.SLUG, lifetime=600)
    session_id = UUID(read_part(user.headers["Authorization"], 1)["sid"])
    token, _ = tokens.issue(
        user_id=UUID(user.user_id),
        session_id=session_id,
        version=1,
        scopes=[],
        auth_time=now(),
        acr="aal1",
        amr=["pwd"],
        session_ends=now() + 3600,
    )

    async with running(create_app(settings, database)) as eddsa_client:
        response = await send(eddsa_client, token)
        (published,) = (await eddsa_client.get("/.well-known/jwks.json")).json()["keys"]

    assert response.status_code == 200
    assert read_part(token, 0)["alg"] == "EdDSA"
    assert set(published) == {"kty", "crv", "x", "kid", "use", "alg"}


def test_the_helper_signs_with_the_key_it_was_given(forge: Forge) -> None:
    signing_input, _, signature = forge.with_claims().rpartition(".")
    raw = decode(signature)

    # Raises InvalidSignature when it does not fit: without this, every forgery might be refused for its signature alone.
    private_key(forge.jwk).public_key().verify(
        encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:])),
        signing_input.encode(),
        ec.ECDSA(SHA256()),
    )


def issued(tokens: AccessTokens, number: int) -> str:
    token, _ = tokens.issue(
        user_id=UUID(int=number),
        session_id=UUID(int=number),
        version=1,
        scopes=[],
        auth_time=now(),
        acr="aal1",
        amr=["pwd"],
        session_ends=now() + 3600,
    )
    return token


def test_a_cached_token_still_expires() -> None:
    tokens = AccessTokens(parse_key_ring(KEY_SET, source="tests"), issuer="i", audience="a", lifetime=600)
    token = issued(tokens, 1)
    ends = tokens.read(token).expires_at

    with time_machine.travel(ends - 1, tick=False):
        assert tokens.read(token).user_id == UUID(int=1)
    with time_machine.travel(ends, tick=False), pytest.raises(InvalidTokenError):
        tokens.read(token)


def test_a_worker_caches_a_bounded_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.auth.access.tokens._MAX_VERIFIED", 2)
    tokens = AccessTokens(parse_key_ring(KEY_SET, source="tests"), issuer="i", audience="a", lifetime=600)
    made = [issued(tokens, number) for number in range(4)]

    seen = [tokens.read(token).user_id.int for token in [*made, *made]]

    assert seen == [0, 1, 2, 3] * 2
    assert len(tokens._verified) == 2


def test_a_token_is_verified_once_and_then_cached() -> None:
    tokens = AccessTokens(parse_key_ring(KEY_SET, source="tests"), issuer="i", audience="a", lifetime=600)
    token = issued(tokens, 1)

    assert tokens.read(token) is tokens.read(token)


@pytest.mark.parametrize(("left", "lifetime"), [(3600, 600), (600.9, 600), (90, 90), (0.5, 1), (-5, 1)])
def test_a_token_ends_with_its_session_but_lives_at_least_a_second(left: float, lifetime: int) -> None:
    tokens = AccessTokens(parse_key_ring(KEY_SET, source="tests"), issuer="i", audience="a", lifetime=600)

    with time_machine.travel(1_800_000_000, tick=False):
        token, lives = tokens.issue(
            user_id=UUID(int=1),
            session_id=UUID(int=1),
            version=1,
            scopes=[],
            auth_time=now(),
            acr="aal1",
            amr=["pwd"],
            session_ends=now() + left,
        )

    claims = read_part(token, 1)
    assert claims["exp"] - claims["iat"] == lives == lifetime


def test_the_release_before_accepts_a_token(forge: Forge) -> None:
    claims = ReleasedClaims.model_validate(forge.claims | {"kid": forge.header["kid"]})

    assert str(claims.user_id) == forge.claims["sub"]
    assert forge.header.keys() == RELEASED_HEADER
    assert len(forge.token) <= RELEASED_LENGTHS["token"]
    assert len(forge.token.partition(".")[0]) <= RELEASED_LENGTHS["header"]


def test_the_session_of_a_token_of_the_release_before_began_with_a_password(forge: Forge) -> None:
    tokens = AccessTokens(
        parse_key_ring(KEY_SET, source="tests"),
        issuer=forge.claims["iss"],
        audience=forge.claims["aud"],
        lifetime=600,
    )

    claims = tokens.read(forge.with_claims(acr=MISSING, amr=MISSING))

    assert (claims.acr, claims.amr) == ("aal1", ("pwd",))
