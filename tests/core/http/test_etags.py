import pytest
from fastapi import Response

from app.core.http.etags import Created, ReadCondition, WriteCondition, acceptable_versions, etag, is_current


class Row:
    id = "a1"
    version = 7


def test_a_tag_is_strong_and_quoted() -> None:
    assert etag(7) == '"7"'


@pytest.mark.parametrize("header", [None, "*", " * "])
def test_without_a_condition_any_version_is_acceptable(header: str | None) -> None:
    assert acceptable_versions(header) is None


@pytest.mark.parametrize(
    ("header", "versions"),
    [
        ('"7"', {7}),
        ('"7", "8"', {7, 8}),
        ('"7","x", "9"', {7, 9}),
        ('W/"7"', set()),
        ("7", set()),
        ('"x"', set()),
        ('"-1"', set()),
        ('"1.0"', set()),
        ('"\u0661"', set()),
        (f'"{"9" * 100}"', set()),
        ("", set()),
    ],
)
def test_a_condition_lists_versions_and_ignores_foreign_tags(header: str, versions: set[int]) -> None:
    assert acceptable_versions(header) == frozenset(versions)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("*", True),
        ('"7"', True),
        ('W/"7"', True),
        ('"6", "7"', True),
        ('"6"', False),
        ('"07"', False),
        ("7", False),
        ("", False),
    ],
)
def test_a_copy_is_current_if_one_of_its_tags_matches_the_row(header: str | None, *, expected: bool) -> None:
    assert is_current(header, 7) == expected


@pytest.mark.parametrize(("header", "status"), [(None, 200), ('"6"', 200), ('"7"', 304)])
def test_a_read_has_the_tag_and_is_304_if_the_copy_is_current(header: str | None, status: int) -> None:
    response = Response()

    assert ReadCondition(header, response).tag(Row()).version == 7
    assert (response.status_code, response.headers["etag"]) == (status, '"7"')


def test_a_write_has_the_tag_and_the_acceptable_versions() -> None:
    response = Response()
    condition = WriteCondition('"6"', response)

    assert condition.versions == frozenset({6})
    assert condition.tag(Row()).version == 7
    assert (response.status_code, response.headers["etag"]) == (200, '"7"')


def test_a_created_row_has_a_tag_and_a_location_below_the_path() -> None:
    response = Response()

    assert Created("/things", response).tag(Row()).id == "a1"
    assert (response.headers["location"], response.headers["etag"]) == ("/things/a1", '"7"')


def test_the_url_of_a_created_row_can_end_with_its_slug() -> None:
    response = Response()

    assert Created("/shelves/a b:c/books", response).tag(Row(), segment="größe/1").id == "a1"
    assert response.headers["location"] == "/shelves/a%20b:c/books/gr%C3%B6%C3%9Fe%2F1"


@pytest.mark.parametrize("kind", [ReadCondition, WriteCondition, Created])
def test_a_response_with_another_body_has_the_tag_of_its_row(
    kind: type[ReadCondition] | type[WriteCondition] | type[Created],
) -> None:
    response = Response()

    assert kind('"7"', response).tag(Row(), {"title": "A"}) == {"title": "A"}
    assert response.headers["etag"] == '"7"'
    assert response.status_code == (304 if kind is ReadCondition else 200)


def test_a_location_has_only_characters_of_a_url() -> None:
    response = Response()

    Created("/shelves/日本 \r\n?#/books", response).tag(Row())

    assert response.headers["location"] == "/shelves/%E6%97%A5%E6%9C%AC%20%0D%0A%3F%23/books/a1"
