"""Requests that every operation of the OpenAPI document must refuse, including future operations."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from app.core.http.problems import MAX_ERRORS
from tests.core.recording import Recording
from tests.hostile.attack import (
    CANARY,
    FORM,
    INVISIBLE,
    JSON,
    Attack,
    Header,
    Target,
    check_refusals,
    paths_with_oauth_errors,
)

OTHER_UUID = "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"
MALFORMED = {
    "empty": b"",
    "truncated": b'{"',
    "NaN": b'{"x": NaN}',
    "a member twice": b'{"x": 1, "x": 2}',
    "too deep": b"[" * 100_000,
    "a byte order mark": b"\xef\xbb\xbf{}",
    "not UTF-8": b'{"x": "\xff"}',
}
NOT_OBJECTS: list[Any] = [None, True, 1, CANARY, [], [{}]]
FOREIGN: dict[str, list[Header]] = {
    "no type": [],
    "text": [("Content-Type", "text/plain")],
    "multipart": [("Content-Type", "multipart/form-data; boundary=x")],
    "two types": [JSON, FORM],
    "compressed": [("Content-Encoding", "gzip")],
}
UNPRINTABLE = ("\0", "\x1b", "\x7f", "\x85", "\ue000", "\uffff", "\ud800", *INVISIBLE)


class Operation:
    """An operation of the document, and a caller who may use it."""

    def __init__(self, contract: Mapping[str, Any], path: str, method: str, declared: Mapping[str, Any]) -> None:
        self._contract = contract
        self.name = f"{method.upper()} {path}"
        self.method = method.upper()
        self.address = re.sub(r"\{\w+\}", OTHER_UUID, path)
        self.who = "admin" if "security" in declared else "nobody"
        # An empty requirement: the login is optional.
        self.is_protected = "security" in declared and {} not in declared["security"]
        content = declared.get("requestBody", {}).get("content", {})
        self.media_type = next(iter(content), None)
        self._schema = content[self.media_type]["schema"] if self.media_type else {}
        self.has_oauth_errors = path in paths_with_oauth_errors()
        self.has_form = self.media_type == FORM[1]
        self.accepts_others = declared.get("x-extra-parameters", False)
        self.max_body_size = max(1_048_576, declared.get("x-max-body-size", 0))

    def attack(self, name: str, status: int, problem: str, query: str = "", **more: Any) -> Attack:
        options = {"headers": (("Content-Type", self.media_type),) if self.media_type else (), "who": self.who, **more}
        oauth = "invalid_request" if self.has_oauth_errors else None
        return Attack(
            f"{self.name}: {name}", status, problem, f"{self.address}{query}", self.method, oauth=oauth, **options
        )

    def texts(self) -> Iterator[str]:
        """Return the members of the body that are texts, except secrets."""
        if self.media_type == JSON[1]:
            for name, member in self._resolved(self._schema)["properties"].items():
                kinds = [member, *member.get("anyOf", ())]
                if any(kind.get("type") == "string" and kind.get("format") != "password" for kind in kinds):
                    yield name

    def secrets(self) -> Iterator[str]:
        """Return the members of the body that are secrets."""
        if self.media_type == JSON[1]:
            for name, member in self._resolved(self._schema)["properties"].items():
                if member.get("format") == "password":
                    yield name

    def kept_secrets(self) -> Iterator[str]:
        """Return the secrets that are stored and so have a maximum length. Other secrets are only compared."""
        for name in self.secrets():
            if "maxLength" in self._resolved(self._schema)["properties"][name]:
                yield name

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        if "$ref" not in schema:
            return schema
        resolved: Mapping[str, Any] = self._contract["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return resolved


@pytest.fixture
def operations(target: Target) -> list[Operation]:
    return [
        Operation(target.contract, path, method, declared)
        for path, item in target.contract["paths"].items()
        for method, declared in item.items()
    ]


async def test_every_operation_refuses_parameters_it_does_not_declare(
    target: Target, recording: Recording, subtests: pytest.Subtests, operations: list[Operation]
) -> None:
    attacks = []
    for one in operations:
        status, problem = (
            (400, "malformed-request") if one.has_oauth_errors and one.has_form else (422, "validation-error")
        )
        body = {"body": b"{}"} if one.media_type == JSON[1] else {}
        if not one.accepts_others:
            attacks.append(one.attack("an unknown parameter", status, problem, f"?foo={CANARY}", **body))
        attacks += [
            *(
                one.attack(
                    f"{name} in the address", 400, "malformed-request", f"?{name}={CANARY}", codes=("secret_in_url",)
                )
                for name in ("token", "password", "access_token")
            ),
        ]

    await check_refusals(target, recording, subtests, attacks)


async def test_every_operation_accepts_only_its_own_media_type(
    target: Target, recording: Recording, subtests: pytest.Subtests, operations: list[Operation]
) -> None:
    attacks = []
    for one in operations:
        if one.media_type:
            # The type is right, so only the compression is refused.
            own = ("Content-Type", one.media_type)
            kinds = FOREIGN | {"another kind": [JSON if one.has_form else FORM]}
            attacks += [
                # A form without required fields may be empty, and then it needs no type.
                one.attack(
                    name,
                    415,
                    "unsupported-media-type",
                    headers=(*given, *([own] if name == "compressed" else [])),
                    body=b"x",
                )
                for name, given in kinds.items()
                if len(given) != 1 or not given[0][1].startswith(one.media_type)
            ]
            attacks.append(
                one.attack(
                    "too large",
                    413,
                    "payload-too-large",
                    headers=(own, ("Content-Length", str(one.max_body_size + 1))),
                    expected_headers={"connection": "close"},
                )
            )

    assert attacks
    await check_refusals(target, recording, subtests, attacks)


async def test_every_operation_with_json_refuses_malformed_and_unexpected_documents(
    target: Target, recording: Recording, subtests: pytest.Subtests, operations: list[Operation]
) -> None:
    attacks = []
    for one in operations:
        if one.media_type == JSON[1]:
            attacks += [one.attack(name, 400, "malformed-request", body=body) for name, body in MALFORMED.items()]
            attacks += [
                one.attack(f"the document {value}", 422, "validation-error", body=json.dumps(value).encode())
                for value in NOT_OBJECTS
            ]
            attacks.append(one.attack("an unknown member", 422, "validation-error", body=b'{"foo": "canary7hq2"}'))

    assert attacks
    await check_refusals(target, recording, subtests, attacks)


async def test_every_operation_with_a_form_refuses_malformed_forms(
    target: Target, recording: Recording, subtests: pytest.Subtests, operations: list[Operation]
) -> None:
    bodies = [b"", b"foo=canary7hq2", b"&&&", b"\xff", b"%FF=1", b"x=%ED%A0%80", b"a=1&a=2", b"{}", b"=" * 10_000]
    attacks = [
        one.attack(f"the form {body[:20]!r}", 400, "malformed-request", body=body)
        for one in operations
        if one.has_form
        for body in bodies
    ]

    assert attacks
    await check_refusals(target, recording, subtests, attacks)


async def test_every_text_of_every_body_must_be_printable_and_has_a_maximum_length(
    target: Target, subtests: pytest.Subtests, operations: list[Operation]
) -> None:
    checked = 0
    for one in operations:
        unprintable = [(name, f"{CANARY}{character}") for name in one.texts() for character in UNPRINTABLE]
        too_long = [(name, CANARY * 2000) for name in (*one.texts(), *one.kept_secrets())]
        for name, text in (*unprintable, *too_long, *((name, f"{CANARY}\ud800") for name in one.secrets())):
            with subtests.test(f"{one.name} {name} {text[:20]!a}"):
                body = json.dumps({name: text}).encode()
                reply = await target.send(one.attack(name, 422, "validation-error", body=body))

                assert reply.status == 422, reply
                # Other missing members come first, and a response lists only some errors.
                pointers = [error["pointer"] for error in reply.document["errors"]]
                assert f"#/{name}" in pointers or len(pointers) == MAX_ERRORS
                assert CANARY not in reply.body.decode()
                checked += 1
    assert checked


async def test_every_protected_operation_refuses_requests_without_a_valid_token(
    target: Target, recording: Recording, subtests: pytest.Subtests, operations: list[Operation]
) -> None:
    protected = [one for one in operations if one.is_protected]
    attacks = [
        one.attack(name, 401, "unauthorized", who="nobody", headers=(*own, *given), body=b"{}")
        for one in protected
        for own in [(("Content-Type", one.media_type),) if one.media_type else ()]
        for name, given in (
            ("no token", ()),
            ("a junk token", (("Authorization", f"Bearer {CANARY}"),)),
            ("another scheme", (("Authorization", f"Basic {CANARY}"),)),
        )
    ]

    assert attacks
    await check_refusals(target, recording, subtests, attacks)
