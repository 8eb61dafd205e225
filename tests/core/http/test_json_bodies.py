import json
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import AppError, InvalidInputError, MalformedRequestError
from app.core.http.requests.json_bodies import MAX_DEPTH, MAX_VALUES, parse_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"{}", {}),
        (b' \n\t{"a" : [1, -2.5, 1e3, true, null, "x"]}\r\n ', {"a": [1, -2.5, 1000.0, True, None, "x"]}),
        (b'{"a": {"a": 1}, "b": {"a": 2}}', {"a": {"a": 1}, "b": {"a": 2}}),
        (b'{"\\u00fc": "\\ud83e\\udd8a"}', {"ü": "🦊"}),
        ('{"ü": "🦊"}'.encode(), {"ü": "🦊"}),
        (b'"\\ud800"', "\ud800"),
        (b"1e308", 1e308),
        (b"-0", 0),
        (b"9" * 4000, int("9" * 4000)),
        (b"null", None),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
        (b'["' + b"[" * 1000 + b'"]', ["[" * 1000]),
        (b'["\\"' + b"[" * 1000 + b'\\""]', ['"' + "[" * 1000 + '"']),
        (b"[" + b"[]," * 1000 + b"[]]", [[]] * 1001),
        (b"[" + b"0," * (MAX_VALUES - 1) + b"0]", [0] * MAX_VALUES),
        (b"[" + b'"x",' * (MAX_VALUES - 1) + b'"x"]', ["x"] * MAX_VALUES),
        (b'["' + b"[{,x" * 100_000 + b'"]', ["[{,x" * 100_000]),
    ],
)
def test_valid_json_is_parsed(text: bytes, value: Any) -> None:
    parsed = parse_json(text)

    assert value is None or parsed == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"{} x",
        b"{}{}",
        b"[1, 2",
        b"[1,]",
        b'{"a": 1,}',
        b"{'a': 1}",
        b"{a: 1}",
        b'{"a": 1} // x',
        b'/* x */ {"a": 1}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"[-Infinity]",
        b"[1e999]",
        b"[-1e999]",
        b"9" * 5000,
        b"01",
        b"+1",
        b"0x10",
        b"1_000",
        b".5",
        b"1.",
        b'"\t"',
        b'"\n"',
        b'"\x00"',
        b'"\\x"',
        b'"\\u12"',
        b'"unended',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32"),
        b'"\xff"',
        b'"\xc0\xaf"',
        b'"\xed\xa0\x80"',
        b"undefined",
        b"True",
    ],
)
def test_invalid_json_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedRequestError) as refused:
        parse_json(text)

    assert refused.value.code == "malformed_request"


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1, "a": 1}',
        b'[{"b": {"a": 1, "a": 2}}]',
        b'{"a": 1, "\\u0061": 2}',
    ],
)
def test_a_duplicate_member_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedRequestError) as refused:
        parse_json(text)

    assert refused.value.code == "duplicate_member"


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 33 + b"]" * 33,
        b'{"a":' * 33 + b"1" + b"}" * 33,
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'["x", "y\\\\", ' + b"[" * 32,
        b"[" * 33 + b'"unended',
    ],
)
def test_json_with_too_many_levels_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedRequestError) as refused:
        parse_json(text)

    assert refused.value.code == "too_deep"


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 33 + b'"' + b'\\"' * 500_000,
        b"[" * 33 + b'"' * 999_999,
        b"[" * 33 + b'"\\' * 499_999,
        b"[" * 33 + b"\\" * 999_999,
        b'{"a":' * 190_000,
        b"[]" * 500_000,
    ],
)
def test_refusing_a_megabyte_takes_linear_time(text: bytes) -> None:
    started = process_time()

    with pytest.raises(MalformedRequestError):
        parse_json(text)

    # Linear time is a few hundredths of a second, quadratic time is minutes.
    assert process_time() - started < 2


@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"0," * MAX_VALUES + b"0]",
        b"[" + b'"x",' * MAX_VALUES + b'"x"]',
        b"{" + b",".join(b'"%x":"x"' % number for number in range(MAX_VALUES + 1)) + b"}",
        b"[" + b"{}," * MAX_VALUES + b"{}]",
        b"[" + b"," * 40 + b'""' * 3 * MAX_VALUES,
    ],
)
def test_json_with_too_many_values_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_json(text)

    assert [error.code for error in refused.value.errors] == ["too_many_values"]


@pytest.mark.parametrize("text", [b"[" + b"9" * 4000 + b",0" * 32 + b"]", b"[" + b"0.1,2e3," * 32 + b"1]"])
def test_numbers_are_parsed_in_a_body_with_many_values(text: bytes) -> None:
    assert parse_json(text) == json.loads(text)


def test_many_long_numbers_are_malformed() -> None:
    with pytest.raises(MalformedRequestError):
        parse_json(b"[" + b"9" * 4000 + (b"," + b"9" * 4000) * 33 + b"]")


@pytest.mark.parametrize("text", [b"[]" * 500_000, b"{}" * 100, b"[[]] [[],[]]" * 40])
def test_several_documents_are_malformed(text: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        parse_json(text)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    try:
        parse_json(body)
    except AppError as error:
        assert isinstance(error, MalformedRequestError)  # noqa: PT017  # Parsing without an error is fine, too.


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    )
)
def test_every_json_document_is_parsed_back(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
