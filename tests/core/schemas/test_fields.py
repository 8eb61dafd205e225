from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import SecretStr, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from app.core.schemas.fields import (
    Amount,
    Answer,
    Day,
    Flag,
    Identifier,
    Identifiers,
    Instant,
    LongText,
    Omittable,
    Payload,
    PrintableSecret,
    QueryFlag,
    QueryIdentifier,
    QueryInstant,
    QueryInteger,
    ShortText,
    Whole,
    refuse_unprintable_lines,
)
from tests.hostile.attack import INVISIBLE

SECRET = Annotated[SecretStr, PrintableSecret]
KEY = "0192f0c1-a2b3-7c4d-8e5f-60718293a4b5"


class Change(Payload):
    name: Omittable[ShortText] = None
    is_open: Omittable[Flag] = None


def codes(kind: Any, value: object) -> list[str]:
    """Return the codes of the errors for a value."""
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        return [one["type"] for one in error.errors()]
    return []


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "x" * 128,
        "🦊" * 128,
        "O'Brien-Smith, Jr.",
        "<script>",
        "{{7*7}}",
        "=cmd()",
        "../..",
        "%s%n",
        "नमस्ते",
        "עברית",
        "👩\u200d👩\u200d👧",
        "a\u00a0b",
        # Characters that are newer than the tables of this Python version, or not assigned.
        "\U0001fae9",
        "\u0378",
        "\U0003fffd",
        # A joiner or a variation selector that the script or the emoji needs.
        "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627",
        "\u0915\u094d\u200d\u0937",
        "\u0d05\u0d35\u0d28\u0d4d\u200d",
        "\u1820\u180b\u1828\u180e\u1820",
        "\U0001f469\U0001f3fd\u200d\u2764\ufe0f\u200d\U0001f469",
        "\U0001f3f4\u200d\u2620\ufe0f",
        "\u2764\ufe0e 1\ufe0f\u20e3",
        "\u845b\U000e0100\u57ce",
        "\U0001f1e9\U0001f1ea",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        # As many marks on a letter as languages use.
        "Nguye\u0302\u0303n",
        "\u05e9\u05c1\u05b8\u05dc",
        "a\u0301\u0302\u0303\u0304a\u0301\u0302\u0303\u0304",
    ],
)
def test_a_valid_short_text_is_not_changed(text: str) -> None:
    assert TypeAdapter(ShortText).validate_python(text) == text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "string_too_short"),
        ("x" * 129, "string_too_long"),
        ("🦊" * 129, "string_too_long"),
        (" ", "blank"),
        ("\u3000\u00a0", "blank"),
        ("a\x00b", "unprintable"),
        ("a\nb", "unprintable"),
        ("a\x1b[31m", "unprintable"),
        ("a\x7f", "unprintable"),
        ("a\x85", "unprintable"),
        ("a\ue000", "unprintable"),
        ("a\ufffe", "unprintable"),
        ("a\U0001ffff", "unprintable"),
        ("a\ud800", "string_unicode"),
        ("a\uf8ff", "unprintable"),
        ("a\U000f0000", "unprintable"),
        ("a\U0010ffff", "unprintable"),
        *((f"a{character}b", "unprintable") for character in INVISIBLE),
        ("a\u200db", "unprintable"),
        ("a\u200cb", "unprintable"),
        ("\u0639\u200c", "unprintable"),
        ("\u200d\u0639", "unprintable"),
        ("\u0639\u200d\u200c\u0639", "unprintable"),
        ("1\ufe0f", "unprintable"),
        ("a\ufe0f", "unprintable"),
        ("\u845b\U000e01f0", "unprintable"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", "unprintable"),
        ("a" + "\u0301" * 5, "too_many_marks"),
        ("a\u0301\u0316\u1ab0\u1dc0\u20d0", "too_many_marks"),
        ("\u0e01" + "\u0e47" * 5, "too_many_marks"),
        ("\u2800", "blank"),
    ],
)
def test_an_invalid_short_text_is_refused(text: str, code: str) -> None:
    assert codes(ShortText, text) == [code]


@pytest.mark.parametrize("text", ["\u202e", "\u200b", "\U0001fae9", "\u0378", "a" + "\u0301" * 9, "\u3164"])
def test_a_secret_may_contain_invisible_characters(text: str) -> None:
    assert codes(SECRET, text) == []


@pytest.mark.parametrize("text", ["\0", "\x85", "\ue000", "\uf8ff", "\ufdd0", "\uffff", "\U0005fffe", "\ufffd"])
def test_a_secret_must_not_contain_untypable_characters(text: str) -> None:
    assert codes(SECRET, text) == ["unprintable"]


@pytest.mark.parametrize("value", [1, 0, "true", "false", "yes", 1.0, [], {}])
def test_a_flag_is_not_converted_from_other_values(value: object) -> None:
    assert codes(Flag, value) == ["bool_type"]
    assert codes(Flag, value=True) == codes(Flag, value=False) == []


def test_an_omitted_member_is_not_set() -> None:
    assert Change().model_fields_set == set()
    assert Change(name="x").model_dump(exclude_unset=True) == {"name": "x"}


@pytest.mark.parametrize("name", ["name", "is_open"])
def test_an_omittable_member_refuses_null(name: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Change.model_validate({name: None})

    assert [(one["type"], one["loc"]) for one in refused.value.errors()] == [("null", (name,))]


def test_an_error_of_an_omittable_member_points_to_the_member() -> None:
    with pytest.raises(ValidationError) as refused:
        Change.model_validate({"name": 1, "is_open": "yes"})

    assert [(one["type"], one["loc"]) for one in refused.value.errors()] == [
        ("string_type", ("name",)),
        ("bool_type", ("is_open",)),
    ]


def test_the_schema_of_an_omittable_member_has_no_null_and_no_default() -> None:
    schema = Change.model_json_schema()

    assert "required" not in schema
    assert schema["properties"]["is_open"] == {"title": "Is Open", "type": "boolean"}
    assert schema["properties"]["name"] == {"maxLength": 128, "minLength": 1, "title": "Name", "type": "string"}


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("-1", -1), ("007", 7), ("9" * 18, 10**18 - 1)])
def test_a_query_integer_consists_of_decimal_digits(text: str, value: int) -> None:
    assert TypeAdapter(QueryInteger).validate_python(text) == value


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "+1", "1.0", "1e2", "1_0", "\u0661", "1" * 19, "--1", "0x1", "1\n", "\x00"]
)
def test_other_spellings_of_an_integer_are_refused(text: str) -> None:
    assert codes(QueryInteger, text) == ["malformed"]


def test_a_numeric_default_is_accepted() -> None:
    assert TypeAdapter(QueryInteger).validate_python(50) == 50


@pytest.mark.parametrize(("text", "refused"), [("true", []), ("false", []), ("True", 1), ("1", 1), ("yes", 1), ("", 1)])
def test_a_query_flag_has_two_spellings(text: str, refused: object) -> None:
    assert codes(QueryFlag, text) == (["malformed"] if refused else [])


def test_an_id_in_canonical_spelling_is_accepted() -> None:
    assert TypeAdapter(QueryIdentifier).validate_python(KEY) == UUID(KEY)


@pytest.mark.parametrize(
    "text",
    [KEY.upper(), KEY.replace("-", ""), f"{{{KEY}}}", f"urn:uuid:{KEY}", f" {KEY}", f"{KEY}\n", KEY[:-1], "", "1"],
)
def test_other_spellings_of_an_id_are_refused(text: str) -> None:
    assert codes(QueryIdentifier, text) == ["malformed"]


@pytest.mark.parametrize(
    "text", ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000000Z", "2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00.0+00:00"]
)  # fmt: skip
def test_an_rfc_3339_instant_is_accepted(text: str) -> None:
    assert TypeAdapter(QueryInstant).validate_python(text) == datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["2026-01-31", "2026-01-31T12:00:00", "2026-01-31 12:00:00Z", "1767225600", "2026-01-31T12:00Z", "now", ""]
)
def test_other_spellings_of_an_instant_are_refused(text: str) -> None:
    assert codes(QueryInstant, text) == ["malformed"]


@pytest.mark.parametrize("text", ["2026-02-30T12:00:00Z", "2026-01-31T25:00:00Z", "2026-01-31T12:00:00+99:00"])
def test_an_instant_that_does_not_exist_is_refused(text: str) -> None:
    assert codes(QueryInstant, text) != []


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-01:00"])
def test_an_instant_outside_the_range_of_datetime_is_refused(text: str) -> None:
    assert codes(QueryInstant, text) == ["malformed"]


def test_a_payload_is_frozen_and_refuses_unknown_members() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Change().name = "x"
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Change.model_validate({"nmae": "x"})


def test_a_response_body_is_built_from_a_row() -> None:
    class Row:
        name = "x"
        hashed_password = "never shown"

    class Shown(Answer):
        name: str

    assert Shown.model_validate(Row()).model_dump() == {"name": "x"}


def test_a_multiline_text_may_contain_newlines_and_tabs_only() -> None:
    assert refuse_unprintable_lines("two\n\tbottles") == "two\n\tbottles"
    with pytest.raises(PydanticCustomError, match="control"):
        refuse_unprintable_lines("two\nbott\0les")
    with pytest.raises(PydanticCustomError):
        refuse_unprintable_lines("two\nbott\u202eles")


class Body(Payload):
    text: Omittable[LongText] = None
    whole: Omittable[Whole] = None
    amount: Omittable[Amount] = None
    day: Omittable[Day] = None
    instant: Omittable[Instant] = None
    key: Omittable[Identifier] = None
    keys: Omittable[Identifiers] = None


@pytest.mark.parametrize(
    ("member", "given", "value"),
    [
        ("text", "a\n\tb", "a\n\tb"),
        ("text", "x" * 10_000, "x" * 10_000),
        ("whole", -(10**12), -(10**12)),
        ("whole", 10**12, 10**12),
        ("amount", "0.00", Decimal("0.00")),
        ("amount", "-0.01", Decimal("-0.01")),
        ("amount", "999999999999.99", Decimal("999999999999.99")),
        ("day", "2024-02-29", date(2024, 2, 29)),
        ("instant", "2026-01-31T12:00:00.5+01:00", datetime(2026, 1, 31, 11, 0, 0, 500_000, UTC)),
        ("key", KEY, UUID(KEY)),
        ("keys", [], []),
        ("keys", [KEY, str(UUID(int=1))], [UUID(int=1), UUID(KEY)]),
        ("keys", [str(UUID(int=number)) for number in range(100)], [UUID(int=number) for number in range(100)]),
    ],
)
def test_a_member_of_a_body_has_one_spelling(member: str, given: object, value: object) -> None:
    assert getattr(Body.model_validate({member: given}), member) == value
    assert getattr(Body.model_validate({member: value}), member) == value


@pytest.mark.parametrize(
    ("member", "value", "code"),
    [
        ("text", "", "string_too_short"),
        ("text", " \n", "blank"),
        ("text", "x" * 10_001, "string_too_long"),
        ("text", "a\x00", "unprintable"),
        ("whole", 10**12 + 1, "less_than_equal"),
        ("whole", -(10**12) - 1, "greater_than_equal"),
        *(("whole", value, "int_type") for value in (True, "1", 1.0)),
        *(
            ("amount", value, "malformed")
            for value in (1, 1.5, True, "1", "1.5", "1.500", "+1.50", "01.50", "-0.00", ".50", "1e2", "NaN", "1,50")
        ),
        ("amount", "1000000000000.00", "malformed"),
        *(("day", value, "malformed") for value in (0, 1.0, True, "2026-1-31", "20260131", "2026-01-31T00:00:00")),
        ("day", "2026-02-29", "date_from_datetime_parsing"),
        *(("instant", value, "malformed") for value in (0, 1.0, True, "2026-01-31", "2026-01-31T12:00:00", "0")),
        ("instant", "0001-01-01T00:00:00+01:00", "malformed"),
        *(("key", value, "malformed") for value in (1, KEY.upper(), KEY.replace("-", ""), f"urn:uuid:{KEY}")),
        ("keys", KEY, "list_type"),
        ("keys", [KEY, KEY], "repeated"),
        ("keys", [str(UUID(int=number)) for number in range(101)], "too_long"),
    ],
)
def test_another_spelling_of_a_member_is_refused(member: str, value: object, code: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Body.model_validate({member: value})

    assert [(one["type"], one["loc"]) for one in refused.value.errors()] == [(code, (member,))]


def test_a_set_of_ids_is_bounded_in_the_schema() -> None:
    schema = Body.model_json_schema()["properties"]["keys"]

    assert (schema["type"], schema["maxItems"], schema["uniqueItems"]) == ("array", 100, True)
    assert schema["items"]["format"] == "uuid"
    with pytest.raises(ValidationError) as refused:
        Body.model_validate({"keys": ["1"]})
    assert [(one["type"], one["loc"]) for one in refused.value.errors()] == [("malformed", ("keys", 0))]


def test_an_amount_is_a_text_in_the_schema() -> None:
    schema = Body.model_json_schema()["properties"]["amount"]

    assert (schema["type"], schema["maxLength"]) == ("string", 16)
    assert "anyOf" not in schema
