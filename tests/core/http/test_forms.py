from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import MalformedRequestError
from app.core.http.requests.forms import field_names, parse_form


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", []),
        (b"&&", []),
        (b"a=1&b=2", [("a", "1"), ("b", "2")]),
        (b"a=1&a=2", [("a", "1"), ("a", "2")]),
        (b"a&b=&=c&=", [("a", ""), ("b", ""), ("", "c"), ("", "")]),
        (b"a=b=c", [("a", "b=c")]),
        (b"a+b=c+%2B+%20", [("a b", "c +  ")]),
        (b"a%26b=%3D", [("a&b", "=")]),
        (b"a=%C3%BC%e2%82%ac", [("a", "ü€")]),
        ("ü=€".encode(), [("ü", "€")]),
        (b"a=%&b=%2&c=%zz&d=%%34", [("a", "%"), ("b", "%2"), ("c", "%zz"), ("d", "%4")]),
        (b"a=1;b=2", [("a", "1;b=2")]),
        (b"a=%00\x00", [("a", "\0\0")]),
    ],
)
def test_a_form_is_parsed_as_browsers_encode_it(body: bytes, fields: list[tuple[str, str]]) -> None:
    assert parse_form(body) == fields


@pytest.mark.parametrize("body", [b"\xff", b"a=%FF", b"%ED%A0%80=1", b"a=%C0%AF", b"a=\xc3", b"&".join([b"a"] * 1001)])
def test_a_form_with_invalid_utf8_or_too_many_fields_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        parse_form(body)


@given(st.lists(st.tuples(st.text(), st.text())))
def test_every_encoded_form_is_parsed_back(fields: list[tuple[str, str]]) -> None:
    assert parse_form(urlencode(fields).encode()) == fields


def test_field_names_are_found_in_any_encoding() -> None:
    query = b"a=1&%74oken=2&b+c&=x&%FF=1&password"

    assert field_names(query) == {b"a", b"token", b"b c", b"", b"\xff", b"password"}
