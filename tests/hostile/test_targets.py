"""Unknown paths, unknown ids and unsupported methods."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.core.recording import Recording
from tests.hostile.attack import ME, USERS, Attack, Target, check_refusals, paths_with_oauth_errors

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "FOO", "get")
OTHER_UUID = "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"


def unknown(target: str | bytes) -> Attack:
    name = target if isinstance(target, str) else target.decode("latin-1")
    return Attack(name[:60].encode("unicode_escape").decode(), 404, "not-found", target, "GET", headers=(), who="admin")


UNKNOWN_PATHS = [
    unknown(target)
    for target in (
        "//",
        "/api",
        "/api/v1",
        "/api/v1/",
        "/api/v2/users/me",
        "/api/v1//users/me",
        "//api/v1/users/me",
        "/api/v1/./users/me",
        "/api/v1/../api/v1/users/me",
        "/api/v1/users/me/",
        "/API/V1/USERS/ME",
        "/api/v1/users/me;x=1",
        "/api/v1/users/me%2f",
        "/api/v1/users%2fme/",
        "/api/v1/users%2fme",
        "/api%2Fv1%2fusers%2fme",
        "%2fapi/v1/users/me",
        "/%2fapi/v1/users/me",
        "/api/v1/users/me%2f..%2fme",
        "/api%5cv1%5cusers%5cme",
        "/api%252fv1%252fusers%252fme",
        "/api/v1/%2e/users/me",
        "/api/v1/users/%2e%2e/users/me",
        "/livez%2f",
        "/docs%2fstart.js",
        "/problems%2fnot-found",
        "/api/v1/users/me%00",
        "/api/v1/users/me%0d%0aX-Evil:1",
        "/api/v1/users/me%20",
        "/api/v1/users/me.json",
        "/api/v1/users/me#x",
        "/api/v1/users/%6de%ff",
        "/..%2f..%2fetc/passwd",
        "/docs/..%2f..%2fapp/core/config.py",
        "/docs/../openapi.json",
        "/account/..%2f..%2fetc",
        "/account/%00",
        "/problems/..%2f",
        "/problems/%3Cscript%3E",
        "/.well-known/jwks.json/",
        "/.env",
        "/.git/config",
        "/api/v1/" + "x/" * 5000,
        "/" + "%2e%2e/" * 1000,
        "/\ud7ff".encode(),
        b"/api/v1/users/\xff",
        b"/%ED%A0%80",
        b"/%C0%AF",
    )
]
IDS = [
    unknown(f"{USERS}/{text}")
    for text in (
        "abc",
        "0",
        "-1",
        "1.0",
        str(2**31),
        str(2**63),
        "1" + "0" * 300,
        "%D9%A1%D9%A2%D9%A3",
        "null",
        "undefined",
        "NaN",
        "%00",
        "%27%20or%201=1--",
        "%3Cscript%3E",
        "..%2fadmin",
        "../admin",
        "*",
        "%25",
        "x" * 10_000,
        "%ED%A0%80",
        "%FF",
        OTHER_UUID.upper(),
        OTHER_UUID.replace("-", ""),
        f"%7B{OTHER_UUID}%7D",
        f"urn:uuid:{OTHER_UUID}",
        f"{OTHER_UUID}%0a",
        f"%20{OTHER_UUID}",
        OTHER_UUID,
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    )
]


@pytest.mark.parametrize("attacks", [UNKNOWN_PATHS, IDS], ids=["addresses", "ids"])
async def test_an_unknown_path_or_id_is_not_found(
    target: Target, recording: Recording, subtests: pytest.Subtests, attacks: list[Attack]
) -> None:
    await check_refusals(target, recording, subtests, attacks)


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_an_invalid_id_gets_the_same_response_as_an_unknown_id(target: Target, method: str) -> None:
    body = json.dumps({"full_name": "x"}).encode() if method == "PATCH" else b""
    headers = (("Content-Type", "application/json"),)
    real = Attack("unknown", 404, "not-found", f"{USERS}/{OTHER_UUID}", method, body, headers, "admin")
    unreal = replace(real, target=f"{USERS}/abc")

    replies = [await target.send(attack) for attack in (real, unreal)]

    documents = [{**reply.document, "instance": ""} for reply in replies]
    assert documents[0] == documents[1]
    assert documents[0]["status"] == 404


async def test_a_session_of_another_user_gets_the_same_response_as_an_unknown_session(target: Target) -> None:
    (row,) = await target.watcher.fetch("SELECT id FROM sessions WHERE user_id = $1 LIMIT 1", target.ids["admin"])
    foreign = Attack("foreign", 404, "not-found", f"{ME}/sessions/{row['id']}", "DELETE", headers=(), who="user")
    unknown = replace(foreign, target=f"{ME}/sessions/{OTHER_UUID}")

    replies = [await target.send(attack) for attack in (foreign, unknown)]

    documents = [{**reply.document, "instance": ""} for reply in replies]
    assert documents[0] == documents[1]
    assert documents[0]["code"] == "session_not_found"
    assert await target.watcher.fetchval("SELECT revoked_at FROM sessions WHERE id = $1", row["id"]) is None


def undeclared(contract: Mapping[str, Any]) -> Iterator[Attack]:
    for path, item in contract["paths"].items():
        declared = {name.upper() for name in item}
        # `DELETE /users/me/mfa` is `DELETE /users/{user_id}/mfa` with an id that does not exist.
        patterns = [other for other in contract["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", other), path)]
        reached = {name.upper() for pattern in patterns for name in contract["paths"][pattern]}
        address = path.replace("{user_id}", OTHER_UUID).replace("{session_id}", OTHER_UUID)
        for method in (name for name in METHODS if name not in reached):
            yield Attack(
                f"{method} {path}",
                405,
                "method-not-allowed",
                address,
                method,
                b"{}",
                oauth="invalid_request" if path in paths_with_oauth_errors() else None,
                expected_headers={"allow": ", ".join(sorted(declared | ({"HEAD"} if "GET" in declared else set())))},
            )


async def test_every_path_refuses_methods_that_it_does_not_declare(
    target: Target, recording: Recording, subtests: pytest.Subtests
) -> None:
    await check_refusals(target, recording, subtests, undeclared(target.contract))


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
async def test_no_header_overrides_the_method(target: Target, header: str) -> None:
    attack = Attack("override", 200, "", ME, "GET", headers=((header, "DELETE"),), who="user")

    reply = await target.send(attack)

    assert (reply.status, reply.document["id"]) == (200, target.ids["user"])


async def test_a_body_of_a_get_request_is_not_read(target: Target) -> None:
    attack = Attack("body", 200, "", ME, "GET", b"\xff{[" * 1000, headers=(("Content-Type", "x"),), who="user")

    for method in ("GET", "HEAD"):
        assert (await target.send(replace(attack, method=method))).status == 200
