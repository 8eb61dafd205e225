import json
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import pwdlib.hashers.bcrypt
import pytest
from httpx2 import AsyncClient, Response
from uuid_utils.compat import uuid7

from app.core import product
from app.core.db.database import Database, WriteSession
from app.main import create_app
from app.users.models import User
from tests.aftermath import assert_problem, events, existing, jobs, snapshot, stale, stored
from tests.conftest import LoggedIn, log_in, make_settings, running
from tests.factories import PASSWORD, make_user

USERS = "/api/v1/users"
READ = {"id", "email", "full_name", "role", "is_active", "email_verified_at", "created_at", "updated_at"}
REQUEST_ID = "test-request-0001"
STALE = (
    f'Bearer realm="{product.SLUG}", error="insufficient_user_authentication", '
    'error_description="A more recent login is needed", max_age=300'
)


@pytest.fixture
async def other(session: WriteSession) -> User:
    """An ordinary account, which the administrator manages."""
    user = await make_user(session, full_name="Grace Hopper")
    await session.commit()
    return user


def url(user: User | LoggedIn | str) -> str:
    match user:
        case User():
            return f"{USERS}/{user.id}"
        case LoggedIn():
            return f"{USERS}/{user.user_id}"
        case _:
            return f"{USERS}/{user}"


async def create(client: AsyncClient, admin: LoggedIn, /, **body: Any) -> Response:
    # In ASCII, because a lone surrogate has an escape in JSON, but no encoding in UTF-8.
    headers = admin.headers | {"X-Request-ID": REQUEST_ID, "Content-Type": "application/json"}
    return await client.post(USERS, content=json.dumps(body), headers=headers)


async def patch(client: AsyncClient, admin: LoggedIn, user: User | LoggedIn, /, **body: Any) -> Response:
    return await client.patch(url(user), json=body, headers=admin.headers | {"X-Request-ID": REQUEST_ID})


# Create


async def test_a_created_account_is_returned_and_stored_without_a_password(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    response = await create(client, admin, email="Ada@EXAMPLE.com", full_name="Ada Lovelace")

    body = response.json()
    assert response.status_code == 201
    assert set(body) == READ
    assert body["email"] == "Ada@example.com"
    assert (body["full_name"], body["role"], body["is_active"]) == ("Ada Lovelace", "user", True)
    assert body["email_verified_at"] is None
    assert response.headers["location"] == url(body["id"])
    assert response.headers["etag"] == '"1"'
    row = await existing(session, body["id"])
    assert (row.email, row.email_key) == ("Ada@example.com", "ada@example.com")
    assert (row.full_name, row.name_key) == ("Ada Lovelace", "ada lovelace")
    assert (row.hashed_password, row.role, row.is_active) == (None, "user", True)
    assert (row.version, row.authz_version) == (1, 1)


async def test_an_account_can_be_created_with_only_an_address(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    response = await create(client, admin, email="ada@example.com", full_name=None)

    row = await existing(session, response.json()["id"])
    assert (row.full_name, row.name_key) == (None, None)


async def test_the_location_of_a_new_account_returns_it_with_the_same_etag(
    client: AsyncClient, admin: LoggedIn
) -> None:
    created = await create(client, admin, email="ada@example.com")

    response = await client.get(created.headers["location"], headers=admin.headers)

    assert response.status_code == 200
    assert response.json() == created.json()
    assert response.headers["etag"] == created.headers["etag"]


async def test_creating_an_account_enqueues_the_mail_with_the_link_to_set_a_password(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    response = await create(client, admin, email="ada@example.com")

    ((link_id, user_id),) = [(link.id, link.user_id) for link in (await snapshot(session))["account_links"]]
    (job,) = await jobs(session)
    assert str(user_id) == response.json()["id"]
    assert job.task_name == "users.jobs:mail_link"
    assert job.args["arguments"] == {"link_id": str(link_id)}


async def test_creating_an_account_is_written_to_the_audit_log(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    response = await create(client, admin, email="ada@example.com")

    (event,) = await events(session)
    assert event.event == "users.created"
    assert event.actor_id == UUID(admin.user_id)
    assert event.subject_id == UUID(response.json()["id"])
    assert event.session_id is not None
    assert ip_network(event.ip_prefix) == ip_network("127.0.0.0/24")
    assert event.request_id == REQUEST_ID
    assert event.detail == {"role": "user"}


async def test_creating_an_administrator_requires_a_recent_login(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    before = await snapshot(session)
    body = {"email": "ada@example.com", "role": "admin"}

    refused = await client.post(USERS, json=body, headers=stale(admin))

    assert_problem(refused, 401, "insufficient_user_authentication")
    assert refused.headers["www-authenticate"] == STALE
    assert await snapshot(session) == before


async def test_an_administrator_with_a_recent_login_can_create_another(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    response = await create(client, admin, email="ada@example.com", role="admin")

    assert response.status_code == 201
    assert response.json()["role"] == "admin"
    (event,) = await events(session, "users.created")
    assert event.detail == {"role": "admin"}


async def test_creating_an_ordinary_account_requires_no_recent_login(client: AsyncClient, admin: LoggedIn) -> None:
    response = await client.post(USERS, json={"email": "ada@example.com", "role": "user"}, headers=stale(admin))

    assert response.status_code == 201


@pytest.mark.parametrize(
    ("taken", "given"),
    [
        ("ada@example.com", "ada@example.com"),
        ("ada@example.com", "ADA@Example.COM"),
        ("ada@b\u00fccher.example", "ada@xn--bcher-kva.example"),
        ("ada@xn--bcher-kva.example", "ada@B\u00dcCHER.example"),
        ("caf\u00e9@example.com", "cafe\u0301@example.com"),
        ("stra\u00dfe@example.com", "STRASSE@example.com"),
    ],
)
async def test_an_address_is_unique_in_every_spelling(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, taken: str, given: str
) -> None:
    assert (await create(client, admin, email=taken)).status_code == 201
    before = await snapshot(session)

    response = await create(client, admin, email=given)

    assert_problem(response, 409, "email_taken")
    assert await snapshot(session) == before


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("a@gmail.com", "a+1@gmail.com"),
        ("a.b@gmail.com", "ab@gmail.com"),
        ("a@apple.com", "a@\u0430pple.com"),
        ("a@example.com", "a@example.org"),
    ],
)
async def test_similar_addresses_belong_to_different_accounts(
    client: AsyncClient, admin: LoggedIn, one: str, another: str
) -> None:
    first = await create(client, admin, email=one)
    second = await create(client, admin, email=another)

    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]


NO_ADDRESSES = [
    *("", " ", "a", "@", "a@", "@b", "a@b", "a@b..c", "a@.b", "a@-b.co", "a b@c.co", "a@b.c@d.co"),
    *("a@x.co,b@evil.co", "a@x.co;b@evil.co", "a@x.co b@evil.co", "a@x.co\nBcc: e@evil.co", "<a@x.co>"),
    *("A <a@x.co>", "mailto:a@x.co", " a@x.co", "a@x.co ", "a@x.co\t", "a@x.co\r\n"),
    *("a@[127.0.0.1]", "a@127.0.0.1", "a@localhost", "a@xn--.co", "a@x.invalid\u0000", "\u0000a@x.co", "a\u200b@x.co"),
    *("a\ud800@x.co", "a\ufffe@x.co", "a@x\u3002co\u0007", "'a b'@x.co", '"a b"@x.co'),
    *("a" * 65 + "@x.co", "a@" + "b" * 64 + ".co", "a@" + "b." * 127 + "co", "a" * 10_000 + "@x.co"),
    *("a@" + "\u00fc" * 200 + ".co", "a@" + "\u00fc" * 10_000 + ".co"),
]


async def test_an_invalid_address_is_rejected(client: AsyncClient, session: WriteSession, admin: LoggedIn) -> None:
    before = await snapshot(session)

    for address in NO_ADDRESSES:
        response = await create(client, admin, email=address)

        assert_problem(response, 422, "validation_error", "#/email")
    assert await snapshot(session) == before


REFUSED_BODIES: list[tuple[dict[str, Any], str]] = [
    ({}, "#/email"),
    ({"email": None}, "#/email"),
    ({"email": 1}, "#/email"),
    ({"email": True}, "#/email"),
    ({"email": []}, "#/email"),
    ({"email": ["ada@example.com", "eve@example.com"]}, "#/email"),
    ({"email": {}}, "#/email"),
    ({"email": "ada@example.com", "full_name": ""}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": "   "}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": "x" * 129}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": 1}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": True}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": ["Ada"]}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": "Ada\x00"}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": "Ada\r\nLovelace"}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": "Ada\x7f"}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": "Ada\x85"}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": "\ud800"}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": "\ufffe"}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": "\U0001ffff"}, "#/full_name"),
    ({"email": "ada@example.com", "full_name": "\ue000"}, "#/full_name"),
    ({"email": "ada@example.com", "role": "root"}, "#/role"),
    ({"email": "ada@example.com", "role": "ADMIN"}, "#/role"),
    ({"email": "ada@example.com", "role": ""}, "#/role"),
    ({"email": "ada@example.com", "role": 1}, "#/role"),
    ({"email": "ada@example.com", "role": None}, "#/role"),
    ({"email": "ada@example.com", "role": ["admin"]}, "#/role"),
    *(
        ({"email": "ada@example.com", member: value}, f"#/{member}")
        for member, value in {
            "foo": 1,
            "password": "correct horse battery staple",
            "hashed_password": "$2b$12$x",
            "is_superuser": True,
            "roles": ["admin"],
            "scope": "users:write",
            "email_verified": True,
            "email_verified_at": "2026-01-01T00:00:00Z",
            "email_key": "eve@example.com",
            "is_active": False,
            "id": "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5",
            "created_at": "2026-01-01T00:00:00Z",
            "authz_version": 7,
            "version": 7,
            "disabled_at": None,
        }.items()
    ),
]


@pytest.mark.parametrize("pointer", sorted({pointer for _, pointer in REFUSED_BODIES}))
async def test_an_account_with_an_invalid_member_is_not_created(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, pointer: str
) -> None:
    before = await snapshot(session)

    for body in [body for body, refused in REFUSED_BODIES if refused == pointer]:
        response = await create(client, admin, **body)

        assert_problem(response, 422, "validation_error", pointer)
    assert await snapshot(session) == before


@pytest.mark.parametrize("body", ["null", "true", "1", '"x"', "[]", "[{}]"])
async def test_a_body_that_is_not_an_object_is_rejected(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, body: str
) -> None:
    before = await snapshot(session)

    response = await client.post(USERS, content=body, headers=admin.headers | {"Content-Type": "application/json"})

    assert response.status_code == 422
    assert response.json()["code"] == "validation_error"
    assert await snapshot(session) == before


NUMBERS = {"1.0": 422, "1e0": 422, "-0": 422, "01": 400, "+1": 400, "0x10": 400, "1_000": 400, "12345678901234567": 422}


@pytest.mark.parametrize("member", ["email", "full_name", "role"])
async def test_a_number_is_rejected_as_text(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, member: str
) -> None:
    before = await snapshot(session)
    address = "" if member == "email" else '"email": "ada@example.com", '

    for number, status in NUMBERS.items():
        headers = admin.headers | {"Content-Type": "application/json"}
        response = await client.post(USERS, content=f'{{{address}"{member}": {number}}}', headers=headers)

        assert response.status_code == status, number
    assert await snapshot(session) == before


async def test_the_response_does_not_quote_an_invalid_body(client: AsyncClient, admin: LoggedIn) -> None:
    response = await create(client, admin, password="canary-password", email="canary-address")

    assert response.status_code == 422
    assert "canary" not in response.text


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "x" * 128,
        "<script>alert(1)</script>",
        "{{7*7}}",
        "%s%n",
        "=cmd()",
        "../..",
        "\U0001f469\u200d\U0001f680",
        "\u05d0",
    ],
)
async def test_names_are_stored_unchanged(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, name: str
) -> None:
    response = await create(client, admin, email="ada@example.com", full_name=name)

    assert response.status_code == 201
    assert response.json()["full_name"] == name
    assert (await existing(session, response.json()["id"])).full_name == name


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
async def test_an_undeclared_method_of_the_collection_gives_a_405_with_the_allowed_ones(
    client: AsyncClient, method: str
) -> None:
    response = await client.request(method, USERS)

    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD, POST"


# Read


async def test_an_account_is_returned_without_secrets(client: AsyncClient, admin: LoggedIn, other: User) -> None:
    response = await client.get(url(other), headers=admin.headers)

    body = response.json()
    assert response.status_code == 200
    assert set(body) == READ
    assert (body["id"], body["email"], body["full_name"]) == (str(other.id), other.email, "Grace Hopper")
    assert body["email_verified_at"] == "2026-01-01T00:00:00Z"
    assert response.headers["etag"] == '"1"'


@pytest.mark.parametrize("condition", ['"1"', '"9", "1"', 'W/"1"', "*"])
async def test_an_unchanged_account_gives_a_304(
    client: AsyncClient, admin: LoggedIn, other: User, condition: str
) -> None:
    response = await client.get(url(other), headers=admin.headers | {"If-None-Match": condition})

    assert response.status_code == 304
    assert response.content == b""
    assert response.headers["etag"] == '"1"'


@pytest.mark.parametrize("condition", ['"2"', "1", '"11"', "", "x" * 100])
async def test_a_changed_account_is_returned(client: AsyncClient, admin: LoggedIn, other: User, condition: str) -> None:
    response = await client.get(url(other), headers=admin.headers | {"If-None-Match": condition})

    assert response.status_code == 200


NO_IDS = [
    *("abc", "0", "-1", "2147483648", "9223372036854775808", "1.0", "\u0661\u0662\u0663", "null", "undefined", "%00"),
    *("' or 1=1--", "..%2fadmin", "9" * 300, "x" * 10_000, "Me", "ME"),
    "0192F0C1-A2B3-7C4D-8E5F-60718293A4B5",
    "0192f0c1a2b37c4d8e5f60718293a4b5",
    "{0192f0c1-a2b3-7c4d-8e5f-60718293a4b5}",
    "urn:uuid:0192f0c1-a2b3-7c4d-8e5f-60718293a4b5",
    " 0192f0c1-a2b3-7c4d-8e5f-60718293a4b5",
]


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_an_invalid_id_gives_the_same_response_as_an_unknown_one(
    client: AsyncClient, admin: LoggedIn, method: str
) -> None:
    body: dict[str, Any] | None = {} if method == "PATCH" else None

    for user_id in NO_IDS:
        response = await client.request(method, url(user_id), headers=admin.headers, json=body)

        assert response.status_code == 404, user_id
        assert response.json()["type"] == "/problems/not-found"


async def test_only_the_canonical_form_of_an_id_is_valid(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    user_id = uuid7()
    await make_user(session, id=user_id)
    await session.commit()

    responses = [
        await client.get(url(spelling), headers=admin.headers)
        for spelling in (str(user_id).upper(), user_id.hex, f"%7B{user_id}%7D", f"{user_id}/")
    ]

    assert [response.status_code for response in responses] == [404] * 4


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_an_unknown_account_is_not_found(client: AsyncClient, admin: LoggedIn, method: str) -> None:
    body = {"full_name": "Nobody", "is_active": False, "role": "user"} if method == "PATCH" else None

    response = await client.request(method, url(str(uuid4())), headers=admin.headers, json=body)

    assert_problem(response, 404, "user_not_found")


# Update


async def test_renaming_an_account_increments_its_version_and_keeps_its_rights(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, other: User
) -> None:
    response = await patch(client, admin, other, full_name="Rear Admiral Hopper")

    assert response.status_code == 200
    assert set(response.json()) == READ
    assert response.json()["full_name"] == "Rear Admiral Hopper"
    assert response.headers["etag"] == '"2"'
    row = await existing(session, other.id)
    assert (row.full_name, row.name_key) == ("Rear Admiral Hopper", "rear admiral hopper")
    assert (row.version, row.authz_version) == (2, 1)
    (event,) = await events(session)
    assert (event.event, event.actor_id, event.subject_id) == ("users.renamed", UUID(admin.user_id), other.id)
    assert (event.request_id, str(event.ip_prefix), event.detail) == (REQUEST_ID, "127.0.0.0/24", {})


async def test_a_name_can_be_removed(client: AsyncClient, session: WriteSession, admin: LoggedIn, other: User) -> None:
    response = await patch(client, admin, other, full_name=None)

    assert response.json()["full_name"] is None
    row = await existing(session, other.id)
    assert (row.full_name, row.name_key) == (None, None)


async def test_a_role_change_is_recorded_and_invalidates_earlier_tokens(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, user: LoggedIn
) -> None:
    response = await patch(client, admin, user, role="admin")

    after = await client.get(f"{USERS}/me", headers=user.headers)
    assert response.status_code == 200
    assert response.json()["role"] == "admin"
    assert_problem(after, 401, "invalid_token")
    row = await existing(session, user.user_id)
    assert (row.role, row.version, row.authz_version) == ("admin", 2, 2)
    (event,) = await events(session)
    assert (event.event, event.detail) == ("users.role_changed", {"old": "user", "new": "admin"})
    assert (event.actor_id, event.subject_id) == (UUID(admin.user_id), UUID(user.user_id))


async def test_disabling_an_account_is_recorded_and_invalidates_its_tokens(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, user: LoggedIn
) -> None:
    response = await patch(client, admin, user, is_active=False)

    after = await client.get(f"{USERS}/me", headers=user.headers)
    assert response.json()["is_active"] is False
    assert_problem(after, 401, "invalid_token")
    row = await existing(session, user.user_id)
    assert (row.is_active, row.version, row.authz_version) == (False, 2, 2)
    assert [event.event for event in await events(session)] == ["users.disabled"]


async def test_enabling_an_account_does_not_make_earlier_tokens_valid(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, user: LoggedIn
) -> None:
    await patch(client, admin, user, is_active=False)

    response = await patch(client, admin, user, is_active=True)

    after = await client.get(f"{USERS}/me", headers=user.headers)
    assert response.json()["is_active"] is True
    assert_problem(after, 401, "invalid_token")
    assert (await existing(session, user.user_id)).authz_version == 3
    assert [event.event for event in await events(session)] == ["users.disabled", "users.enabled"]


async def test_several_changes_in_one_request_make_one_version_and_one_event_each(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, other: User
) -> None:
    response = await patch(client, admin, other, full_name="Grace", role="admin", is_active=False)

    assert response.headers["etag"] == '"2"'
    row = await existing(session, other.id)
    assert (row.full_name, row.role, row.is_active, row.version, row.authz_version) == ("Grace", "admin", False, 2, 2)
    assert {event.event for event in await events(session)} == {"users.renamed", "users.role_changed", "users.disabled"}


@pytest.mark.parametrize("body", [{}, {"full_name": "Grace Hopper"}, {"role": "user", "is_active": True}])
async def test_an_update_without_a_change_writes_nothing(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, other: User, body: dict[str, Any]
) -> None:
    before = await snapshot(session)

    response = await patch(client, admin, other, **body)

    assert response.status_code == 200
    assert response.headers["etag"] == '"1"'
    assert await snapshot(session) == before


@pytest.mark.parametrize("condition", ['"1"', '"7", "1"', "*", ' "1" '])
async def test_a_change_with_the_current_etag_succeeds(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, other: User, condition: str
) -> None:
    headers = admin.headers | {"If-Match": condition}

    response = await client.patch(url(other), json={"full_name": "Grace"}, headers=headers)

    assert response.status_code == 200
    assert (await existing(session, other.id)).full_name == "Grace"


STALE_TAGS = [b'"2"', b'"0"', b'W/"1"', b"1", b'"11"', b'"x"', b"", b'"1', b'"' + b"1" * 1000 + b'"', b'"\xd9\xa1"']


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_a_change_with_an_outdated_etag_is_rejected(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, other: User, method: str
) -> None:
    before = await snapshot(session)
    body = {"full_name": "Grace"} if method == "PATCH" else None
    authorization = [(name.encode(), value.encode()) for name, value in admin.headers.items()]

    for condition in STALE_TAGS:
        headers = [*authorization, (b"If-Match", condition)]
        response = await client.request(method, url(other), headers=headers, json=body)

        assert_problem(response, 412, "precondition_failed")
    assert await snapshot(session) == before


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"role": None}, "#/role"),
        ({"role": "root"}, "#/role"),
        ({"role": 1}, "#/role"),
        ({"role": ""}, "#/role"),
        ({"is_active": None}, "#/is_active"),
        ({"is_active": 1}, "#/is_active"),
        ({"is_active": "true"}, "#/is_active"),
        ({"is_active": 0}, "#/is_active"),
        ({"is_active": []}, "#/is_active"),
        ({"full_name": ""}, "#/full_name"),
        ({"full_name": " "}, "#/full_name"),
        ({"full_name": 1}, "#/full_name"),
        ({"full_name": {}}, "#/full_name"),
        ({"full_name": "x" * 129}, "#/full_name"),
        ({"full_name": "\x00"}, "#/full_name"),
        ({"email": "eve@example.com"}, "#/email"),
        ({"id": "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"}, "#/id"),
        ({"password": "correct horse battery staple"}, "#/password"),
        ({"hashed_password": "x"}, "#/hashed_password"),
        ({"is_superuser": True}, "#/is_superuser"),
        ({"email_verified_at": "2026-01-01T00:00:00Z"}, "#/email_verified_at"),
        ({"authz_version": 1}, "#/authz_version"),
        ({"version": 1}, "#/version"),
        ({"created_at": "2026-01-01T00:00:00Z"}, "#/created_at"),
        ({"name_key": "x"}, "#/name_key"),
        ({"foo": 1, "full_name": "Grace"}, "#/foo"),
    ],
    ids=lambda value: ascii(value)[:60],
)
async def test_a_change_with_an_invalid_member_is_rejected(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, other: User, body: dict[str, Any], pointer: str
) -> None:
    before = await snapshot(session)

    response = await patch(client, admin, other, **body)

    assert_problem(response, 422, "validation_error", pointer)
    assert await snapshot(session) == before


@pytest.mark.parametrize("role", ["user", "admin"])
async def test_a_role_change_requires_a_recent_login(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, other: User, role: str
) -> None:
    before = await snapshot(session)

    response = await client.patch(url(other), json={"role": role}, headers=stale(admin))

    assert_problem(response, 401, "insufficient_user_authentication")
    assert response.headers["www-authenticate"] == STALE
    assert await snapshot(session) == before


async def test_other_changes_require_no_recent_login(client: AsyncClient, admin: LoggedIn, other: User) -> None:
    body = {"full_name": "Grace", "is_active": False}

    response = await client.patch(url(other), json=body, headers=stale(admin))

    assert response.status_code == 200


@pytest.mark.parametrize("body", [{"role": "user"}, {"is_active": False}, {"role": "user", "full_name": "Grace"}])
async def test_the_last_active_administrator_cannot_be_demoted_or_disabled(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, body: dict[str, Any]
) -> None:
    await make_user(session, role="admin", is_active=False)
    await session.commit()
    before = await snapshot(session)

    response = await patch(client, admin, admin, **body)

    assert_problem(response, 409, "last_admin")
    assert await snapshot(session) == before


async def test_an_outdated_change_of_the_last_administrator_is_rejected_as_outdated(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    before = await snapshot(session)

    response = await client.delete(url(admin), headers=admin.headers | {"If-Match": '"7"'})

    assert_problem(response, 412, "precondition_failed")
    assert await snapshot(session) == before


@pytest.mark.parametrize("cannot", [{"hashed_password": None}, {"email_verified_at": None}], ids=str)
async def test_an_administrator_who_cannot_log_in_does_not_count(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, cannot: dict[str, Any]
) -> None:
    other = await make_user(session, **{"role": "admin", "hashed_password": "set"} | cannot)
    await session.commit()
    before = await snapshot(session)

    for response in [
        await patch(client, admin, admin, role="user"),
        await client.delete(f"{USERS}/{admin.user_id}", headers=admin.headers),
    ]:
        assert_problem(response, 409, "last_admin")
    assert await snapshot(session) == before
    # The other one can go.
    response = await client.delete(f"{USERS}/{other.id}", headers=admin.headers)
    assert response.status_code == 204


async def test_an_administrator_with_an_unverified_address_counts_where_it_can_log_in(
    session: WriteSession, admin: LoggedIn, database_url: str, database: Database
) -> None:
    await make_user(session, role="admin", hashed_password="set", email_verified_at=None)
    await session.commit()
    settings = make_settings(database_url, auth={"require_verified_email": False})

    async with running(create_app(settings, database)) as client:
        response = await patch(client, admin, admin, role="user")

    assert response.status_code == 200


async def test_an_administrator_can_be_demoted_if_another_can_log_in(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    await make_user(session, role="admin", hashed_password="set")
    await session.commit()

    response = await patch(client, admin, admin, role="user")

    assert response.status_code == 200
    after = await client.get(USERS, headers=admin.headers)
    assert_problem(after, 401, "invalid_token")


async def test_the_last_administrator_can_be_renamed(client: AsyncClient, admin: LoggedIn) -> None:
    response = await patch(client, admin, admin, full_name="Grace", role="admin", is_active=True)

    assert response.status_code == 200


async def test_every_change_is_later_than_the_one_before(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    account = await make_user(session, created_at=long_ago, updated_at=long_ago)
    await session.commit()

    response = await patch(client, admin, account, full_name="Grace")

    row = await existing(session, account.id)
    assert response.json()["created_at"] == "2020-01-01T00:00:00Z"
    assert row.created_at == long_ago
    assert row.updated_at > long_ago


# Delete


async def test_deleting_an_account_deletes_its_rows_in_other_tables(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    created = (await create(client, admin, email="ada@example.com")).json()

    response = await client.delete(url(created["id"]), headers=admin.headers | {"X-Request-ID": REQUEST_ID})

    assert response.status_code == 204
    assert response.content == b""
    assert await stored(session, created["id"]) is None
    assert (await snapshot(session))["account_links"] == []
    assert_problem(await client.get(url(created["id"]), headers=admin.headers), 404, "user_not_found")
    assert_problem(await client.delete(url(created["id"]), headers=admin.headers), 404, "user_not_found")


async def test_deleting_an_account_is_recorded_and_its_audit_log_stays(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, other: User
) -> None:
    await patch(client, admin, other, full_name="Grace")

    await client.delete(url(other), headers=admin.headers | {"X-Request-ID": REQUEST_ID})

    renamed, deleted = await events(session)
    assert (renamed.event, renamed.subject_id) == ("users.renamed", other.id)
    assert (deleted.event, deleted.subject_id) == ("users.deleted", other.id)
    assert (deleted.actor_id, deleted.request_id) == (UUID(admin.user_id), REQUEST_ID)
    assert deleted.detail == {}


async def test_the_tokens_of_a_deleted_account_are_invalid(
    client: AsyncClient, admin: LoggedIn, user: LoggedIn
) -> None:
    await client.delete(url(user), headers=admin.headers)

    response = await client.get(f"{USERS}/me", headers=user.headers)

    assert_problem(response, 401, "invalid_token")


async def test_the_address_of_a_deleted_account_can_be_used_again(
    client: AsyncClient, admin: LoggedIn, other: User
) -> None:
    await client.delete(url(other), headers=admin.headers)

    response = await create(client, admin, email=other.email)

    assert response.status_code == 201
    assert response.json()["id"] != str(other.id)


@pytest.mark.parametrize("condition", ['"1"', "*"])
async def test_a_deletion_with_the_current_etag_succeeds(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, other: User, condition: str
) -> None:
    response = await client.delete(url(other), headers=admin.headers | {"If-Match": condition})

    assert response.status_code == 204
    assert await stored(session, other.id) is None


async def test_the_last_active_administrator_cannot_be_deleted(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    await make_user(session, role="admin", is_active=False)
    await session.commit()
    before = await snapshot(session)

    response = await client.delete(url(admin), headers=admin.headers)

    assert_problem(response, 409, "last_admin")
    assert await snapshot(session) == before


async def test_a_disabled_administrator_can_be_deleted(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    disabled = await make_user(session, role="admin", is_active=False)
    await session.commit()

    response = await client.delete(url(disabled), headers=admin.headers)

    assert response.status_code == 204


async def test_a_login_that_stores_a_stronger_hash_does_not_change_the_etag(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    weak = pwdlib.hashers.bcrypt.BcryptHasher(rounds=4).hash(PASSWORD)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    account = await make_user(session, hashed_password=weak, updated_at=long_ago)
    await session.commit()
    shown = await client.get(url(account), headers=admin.headers)

    await log_in(client, account.email)

    again = await client.get(url(account), headers=admin.headers)
    assert (await existing(session, account.id)).hashed_password != weak
    assert again.headers["etag"] == shown.headers["etag"]
    assert again.json() == shown.json()
