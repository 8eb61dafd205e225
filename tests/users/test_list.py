from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from httpx2 import AsyncClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from app.core.db.database import WriteSession
from app.core.schemas.emails import InvalidEmailError, identity, name_key
from app.users.models import User
from tests.aftermath import assert_problem
from tests.conftest import LoggedIn
from tests.factories import make_user

USERS = "/api/v1/users"
DAY = timedelta(days=1)
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)
MOST_PAGES = 50

type Get = Callable[..., Any]


@pytest.fixture
async def people(session: WriteSession, admin: LoggedIn) -> list[str]:
    """Five accounts, created a day apart, whose addresses sort in reverse order. `admin` was created later, today."""
    del admin
    emails = [f"{letter}@people.example" for letter in "edcba"]
    for number, email in enumerate(emails):
        await make_user(session, email=email, created_at=FIRST_DAY + number * DAY, is_active=number % 2 == 0)
    await session.commit()
    return emails


async def listed(client: AsyncClient, admin: LoggedIn, **query: Any) -> list[str]:
    """Return the addresses on all pages, without that of the administrator."""
    emails: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(MOST_PAGES):
        response = await client.get(USERS, params=query | cursor, headers=admin.headers)
        assert response.status_code == 200, response.text
        page = response.json()
        emails += [item["email"] for item in page["items"] if item["email"] != admin.email]
        if page["next_cursor"] is None:
            return emails
        cursor = {"cursor": page["next_cursor"]}
    raise AssertionError("the list has too many pages")


async def test_the_list_contains_accounts_in_the_same_form_as_a_single_read(
    client: AsyncClient, admin: LoggedIn
) -> None:
    alone = await client.get(f"{USERS}/{admin.user_id}", headers=admin.headers)

    response = await client.get(USERS, headers=admin.headers)

    assert response.json() == {"items": [alone.json()], "next_cursor": None}
    assert "link" not in response.headers


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ({}, "edcba"),
        ({"sort": "created_at"}, "edcba"),
        ({"sort": "-created_at"}, "abcde"),
        ({"sort": "email"}, "abcde"),
        ({"sort": "-email"}, "edcba"),
    ],
)
@pytest.mark.usefixtures("people")
async def test_the_pages_together_are_the_sorted_list(
    client: AsyncClient, admin: LoggedIn, sort: dict[str, str], expected: str, limit: int
) -> None:
    emails = await listed(client, admin, limit=limit, **sort)

    assert [email[0] for email in emails] == list(expected)


async def test_accounts_created_at_one_instant_are_each_listed_once(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    for number in range(7):
        await make_user(session, email=f"twin{number}@example.com", created_at=FIRST_DAY)
    await session.commit()

    emails = await listed(client, admin, limit=2)

    assert sorted(emails) == [f"twin{number}@example.com" for number in range(7)]


@pytest.mark.usefixtures("people")
async def test_the_link_header_leads_through_the_same_list(client: AsyncClient, admin: LoggedIn) -> None:
    query: dict[str, Any] = {
        "limit": 1,
        "sort": "-email",
        "is_active": "true",
        "created_after": "2025-12-31T23:59:59.5+00:00",
    }
    response = await client.get(USERS, params=query | {"q": "\u00c4%_&="}, headers=admin.headers)
    assert response.json()["items"] == []
    emails = []
    response = await client.get(USERS, params=query | {"created_before": "2026-01-31T00:00:00Z"}, headers=admin.headers)
    for _ in range(MOST_PAGES):
        emails += [item["email"][0] for item in response.json()["items"]]
        if "link" not in response.headers:
            break
        target, _, relation = response.headers["link"].partition(">; ")
        assert relation == 'rel="next"'
        assert dict(parse_qsl(urlsplit(target).query))["cursor"] == response.json()["next_cursor"]
        response = await client.get(target.removeprefix("<"), headers=admin.headers)
        assert response.status_code == 200, response.text

    assert emails == ["e", "c", "a"]
    assert response.json()["next_cursor"] is None


FILTERS: list[tuple[dict[str, str], str]] = [
    ({"email": "a@people.example"}, "a"),
    ({"email": "A@People.EXAMPLE"}, "a"),
    ({"email": "nobody@people.example"}, ""),
    ({"role": "user"}, "edcba"),
    ({"role": "admin"}, ""),
    ({"is_active": "true"}, "eca"),
    ({"is_active": "false"}, "db"),
    ({"created_after": "2026-01-01T00:00:00Z", "is_active": "true"}, "ca"),
    ({"created_after": "2026-01-01T00:00:00Z", "created_before": "2026-01-31T00:00:00Z"}, "dcba"),
    ({"created_before": "2026-01-03T00:00:00Z"}, "ed"),
    ({"created_before": "2026-01-03T01:00:00+01:00"}, "ed"),
    ({"created_before": "2026-01-03T00:00:00.000001Z"}, "edc"),
    ({"created_after": "2026-01-02T00:00:00Z", "created_before": "2026-01-04T00:00:00Z"}, "c"),
    ({"created_before": "0001-01-01T00:00:00Z"}, ""),
    ({"created_before": "9999-12-31T23:59:59Z"}, "edcba"),
    ({"q": "c@"}, "c"),
    ({"q": "C@PEOPLE"}, "c"),
    ({"q": "people"}, ""),
    ({"q": "c@people.example", "is_active": "false"}, ""),
]


@pytest.mark.parametrize(("query", "expected"), FILTERS)
@pytest.mark.usefixtures("people")
async def test_a_filter_works_with_every_sort_order(
    client: AsyncClient, admin: LoggedIn, query: dict[str, str], expected: str
) -> None:
    for sort in ("created_at", "-created_at", "email", "-email"):
        emails = await listed(client, admin, limit=2, sort=sort, **query)

        letters = "".join(email[0] for email in emails)
        assert letters == (expected if sort in {"created_at", "-email"} else expected[::-1])


NAMES = [
    "100% sure",
    "100 others",
    "under_score",
    "underXscore",
    "\u00c9lodie",
    "E\u0301lise",
    "Elodie",
    "Stra\u00dfe",
    "O'Hara",
    "back\\slash",
]


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ("100", {"100% sure", "100 others"}),
        ("100%", {"100% sure"}),
        ("%", set()),
        ("_", set()),
        ("under_", {"under_score"}),
        ("UNDER", {"under_score", "underXscore"}),
        ("\u00e9l", {"\u00c9lodie", "E\u0301lise"}),
        ("e\u0301l", {"\u00c9lodie", "E\u0301lise"}),
        ("EL", {"Elodie"}),
        ("STRASS", {"Stra\u00dfe"}),
        ("stra\u00df", {"Stra\u00dfe"}),
        ("o'", {"O'Hara"}),
        ("back\\s", {"back\\slash"}),
        ("x" * 128, set()),
        ("\U0001f600", set()),
    ],
)
async def test_a_search_finds_names_by_their_beginning_in_any_case(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, q: str, expected: set[str]
) -> None:
    for name in NAMES:
        await make_user(session, full_name=name, name_key=name_key(name))
    await session.commit()

    response = await client.get(USERS, params={"q": q}, headers=admin.headers)

    assert {item["full_name"] for item in response.json()["items"]} == expected


_LETTERS = st.sampled_from(list("aAbB%_\\ \u00e9\u00c9\u00df\u0130\u01c5\u1e9e\U0001f600\U000efffd\u0301z\u212a"))
# At most four characters, so that no name has too many combining marks.
_WORDS = st.text(_LETTERS, min_size=1, max_size=4).filter(lambda word: word.strip())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(_WORDS, max_size=6), q=_WORDS)
@example(names=["\U000efffd\U000efffd", "\U000efffd"], q="\U000efffd")
async def test_a_search_finds_exactly_the_names_with_that_prefix(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, names: list[str], q: str
) -> None:
    await session.execute(delete(User).where(User.role == "user"))
    for name in names:
        await make_user(session, full_name=name, name_key=name_key(name))
    await session.commit()

    response = await client.get(USERS, params={"q": q, "limit": 100, "role": "user"}, headers=admin.headers)

    found = [item["full_name"] for item in response.json()["items"]]
    assert sorted(found) == sorted(name for name in names if name_key(name).startswith(name_key(q)))


REFUSED: list[tuple[str, str]] = [
    *(
        (f"limit={text}", "limit")
        for text in ("-1", "0", "101", "abc", "1.5", "", "%D9%A1%D9%A0", "%2010", "%2B10", "+10")
    ),
    *(
        (f"limit={text}", "limit")
        for text in ("1e2", "2147483648", "9223372036854775808", "1" + "0" * 300, "1_0", "0x10")
    ),
    *((f"{name}={text}", name) for name in ("offset", "skip", "page") for text in ("-1", "0", "9223372036854775808")),
    *((f"{name}=1", name) for name in ("foo", "LIMIT", "limit%5B%5D", "role%00", "name_key", "hashed_password", "id")),
    ("limit=5&limit=6", "limit"),
    ("limit=5&limit=5", "limit"),
    ("email=a@x.co&email=b@x.co", "email"),
    ("sort=email&sort=email", "sort"),
    ("cursor=a&cursor=b", "cursor"),
    *(
        (f"sort={text}", "sort")
        for text in ("password_hash", "hashed_password", "id;drop", "-", "", "--email", "EMAIL")
    ),
    *(
        (f"sort={text}", "sort")
        for text in ("email,created_at", "email," * 100, "email%20desc", "email%00", "name_key", "id")
    ),
    ("order=ASC--", "order"),
    *(
        (f"email={text}", "email")
        for text in ("", "a", "a@b", "a%00@x.co", "%ED%A0%80@x.co", "a" * 300 + "@x.co", "%25")
    ),
    *((f"q={text}", "q") for text in ("", "%20", "%00", "a%0A", "x" * 129, "%EF%BF%BE", "%F0%9F%BF%BF")),
    *((f"role={text}", "role") for text in ("", "root", "ADMIN", "admin%20", "1", "null")),
    *((f"is_active={text}", "is_active") for text in ("", "1", "0", "yes", "True", "TRUE", "on", "null", "%20true")),
    *(
        (f"{name}={text}", name)
        for name in ("created_after", "created_before")
        for text in (
            "",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "1767225600",
            *("now", "2026-01-01T00:00:60Z", "2026-01-01T24:00:00Z", "2026-01-01 00:00:00Z", "2026-01-01T00:00:00z"),
            *("2026-01-01T00:00:00.1234567Z", "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "infinity", "-1"),
            *("0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00%2B24:00"),
        )
    ),
]


@pytest.mark.parametrize("name", sorted({name for _, name in REFUSED}))
async def test_an_invalid_parameter_is_rejected(client: AsyncClient, admin: LoggedIn, name: str) -> None:
    for query in [query for query, refused in REFUSED if refused == name]:
        response = await client.get(f"{USERS}?{query}", headers=admin.headers)

        assert response.status_code == 422, (query, response.text)
        assert response.json()["code"] == "validation_error"
        (pointer,) = {error["pointer"] for error in response.json()["errors"]}
        assert pointer.startswith("#/query/")
        assert name[:4] in pointer


async def test_the_errors_name_unknown_parameters_up_to_a_limit(client: AsyncClient, admin: LoggedIn) -> None:
    query = "&".join(f"p{number}=1" for number in range(1000))

    response = await client.get(f"{USERS}?{query}", headers=admin.headers)

    assert response.status_code == 422
    assert len(response.json()["errors"]) == 20


BAD_CURSORS = [
    *("", "x", "xx", "====", "a b", "\u00e9", "%00", "A" * 1024, "A" * 1025, "A" * 10_000, "bnVsbA", "W10", "gASVAAAA"),
    "AQ" + "A" * 30,
    "eyJhIjp" + "bW1tb" * 50,
]


async def test_a_forged_cursor_is_rejected(client: AsyncClient, admin: LoggedIn) -> None:
    for cursor in BAD_CURSORS:
        response = await client.get(USERS, params={"cursor": cursor}, headers=admin.headers)

        assert_problem(response, 400, "invalid_cursor")
        assert response.json()["type"] == "/problems/invalid-cursor"


async def first_cursor(client: AsyncClient, admin: LoggedIn, path: str = USERS, **query: Any) -> str:
    response = await client.get(path, params={"limit": 1, **query}, headers=admin.headers)
    cursor: str = response.json()["next_cursor"]
    return cursor


@pytest.mark.usefixtures("people")
async def test_a_cursor_with_any_change_is_rejected(client: AsyncClient, admin: LoggedIn) -> None:
    cursor = await first_cursor(client, admin)
    changed = [
        cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :] for place in range(len(cursor))
    ]

    for attempt in [*changed, cursor + "A", cursor[:-1], cursor + "=", cursor + "\n", " " + cursor]:
        response = await client.get(USERS, params={"cursor": attempt}, headers=admin.headers)
        assert_problem(response, 400, "invalid_cursor")


@pytest.mark.parametrize(
    "query",
    [
        {"sort": "-created_at"},
        {"sort": "email"},
        {"role": "user"},
        {"is_active": "false"},
        {"q": "a"},
        {"email": "a@people.example"},
        {"created_after": "2026-01-01T00:00:00Z"},
        {"created_before": "2027-01-01T00:00:00Z"},
        {"is_active": "true", "role": "user"},
    ],
)
@pytest.mark.usefixtures("people")
async def test_a_cursor_of_another_list_is_rejected(
    client: AsyncClient, admin: LoggedIn, query: dict[str, str]
) -> None:
    cursor = await first_cursor(client, admin, is_active="true")

    response = await client.get(USERS, params={"cursor": cursor} | query, headers=admin.headers)

    assert_problem(response, 400, "invalid_cursor")


@pytest.mark.usefixtures("people")
async def test_a_cursor_is_valid_with_another_limit_and_another_form_of_the_filters(
    client: AsyncClient, admin: LoggedIn
) -> None:
    cursor = await first_cursor(client, admin, created_before="2026-01-31T00:00:00Z")
    query: dict[str, Any] = {
        "cursor": cursor,
        "limit": 3,
        "created_before": "2026-01-31T00:00:00.000Z",
        "sort": "created_at",
    }

    response = await client.get(USERS, params=query, headers=admin.headers)

    assert [item["email"][0] for item in response.json()["items"]] == ["d", "c", "b"]


async def test_a_cursor_can_contain_the_longest_address(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    longest = "\U00010400" * 16 + "@" + ".".join(["x" * 63, "y" * 63, "z" * 57, "co"])
    for email in (longest, "\U00010450" + longest[1:]):
        assert (await client.post(USERS, json={"email": email}, headers=admin.headers)).status_code == 201
    await make_user(session, email="a@example.com")
    await session.commit()

    emails = await listed(client, admin, limit=1, sort="email")

    assert len(emails) == 3


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "email", "-email"])
@pytest.mark.usefixtures("people")
async def test_a_list_continues_after_the_last_account_of_a_page_is_deleted(
    client: AsyncClient, session: WriteSession, admin: LoggedIn, sort: str
) -> None:
    first = await client.get(USERS, params={"limit": 2, "sort": sort, "role": "user"}, headers=admin.headers)
    seen = [item["email"] for item in first.json()["items"]]
    await session.execute(delete(User).where(User.email == seen[-1]))
    await session.commit()

    query = {"sort": sort, "role": "user", "cursor": first.json()["next_cursor"]}
    rest = await client.get(USERS, params=query, headers=admin.headers)

    letters = [email[0] for email in [*seen, *(item["email"] for item in rest.json()["items"])]]
    assert letters == sorted(letters, reverse=sort in {"created_at", "-email"})
    assert len(letters) == 5


_KEYS = st.integers(min_value=0, max_value=40)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    initial=st.sets(_KEYS, max_size=12),
    between=st.lists(st.tuples(st.sets(_KEYS, max_size=3), st.sets(_KEYS, max_size=3)), max_size=4),
    limit=st.integers(min_value=1, max_value=4),
    sort=st.sampled_from(["created_at", "-created_at", "email", "-email"]),
)
async def test_changes_between_pages_neither_repeat_nor_hide_other_rows(
    client: AsyncClient,
    session: WriteSession,
    admin: LoggedIn,
    initial: set[int],
    between: list[tuple[set[int], set[int]]],
    limit: int,
    sort: str,
) -> None:
    await session.execute(delete(User).where(User.role == "user"))
    present: set[int] = set()
    touched: set[int] = set()

    async def change(added: set[int], removed: set[int]) -> None:
        for number in added - present:
            # Three accounts share each instant, because equal sort values are where paging goes wrong.
            created_at = FIRST_DAY + number // 3 * DAY
            await make_user(session, email=f"k{number:02}@example.com", created_at=created_at)
        gone = [f"k{number:02}@example.com" for number in removed]
        await session.execute(delete(User).where(User.email.in_(gone)))
        await session.commit()
        present.update(added)
        present.difference_update(removed)

    await change(initial, set())
    query: dict[str, Any] = {"limit": limit, "sort": sort, "role": "user"}
    seen: list[int] = []
    cursor: dict[str, str] = {}
    changes = iter(between)
    for _ in range(MOST_PAGES):
        response = await client.get(USERS, params=query | cursor, headers=admin.headers)
        page = response.json()
        seen += [int(item["email"][1:3]) for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
        added, removed = next(changes, (set(), set()))
        touched |= added | removed
        await change(added, removed)

    assert len(seen) == len(set(seen)) or touched & {number for number in seen if seen.count(number) > 1}
    assert (initial | present) - touched <= set(seen)
    assert set(seen) <= initial | touched


async def test_the_address_filter_uses_the_unique_key_of_addresses(
    client: AsyncClient, session: WriteSession, admin: LoggedIn
) -> None:
    user = await make_user(session, email="Jos\u00e9@xn--bcher-kva.example")
    await session.commit()

    responses = [
        await client.get(USERS, params={"email": spelling}, headers=admin.headers)
        for spelling in ("jos\u00e9@b\u00fccher.example", "JOSE\u0301@B\u00dcCHER.EXAMPLE", "jose@b\u00fccher.example")
    ]

    found = [[item["id"] for item in response.json()["items"]] for response in responses]
    assert found == [[str(user.id)], [str(user.id)], []]


@settings(max_examples=200, deadline=None)
@given(
    st.text(
        st.sampled_from(list("aA.\u00e9\u0301\u00df\u0130\u0131\u01c5\u1e9e\u03a3\u03c2\ufb03\u212b")),
        min_size=1,
        max_size=6,
    )
)
def test_an_identity_is_stable_and_the_same_for_upper_and_lower_case(local_part: str) -> None:
    address = f"{local_part}@example.com"
    try:
        key = identity(address)
    except InvalidEmailError:
        return

    assert identity(key) == key
    assert identity(address.casefold()) == key
