"""base64url: what is written is read, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import base64url


@given(st.binary(max_size=100))
def test_what_is_written_is_read(raw: bytes) -> None:
    assert base64url.decode(base64url.encode(raw)) == raw


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("YQ==", id="padding"),
        pytest.param("YR", id="bits beyond the last byte"),
        pytest.param("Y", id="half a byte"),
        pytest.param("Y Q", id="a space"),
        pytest.param("Y\nQ", id="a line break"),
        pytest.param("+/8", id="the other alphabet"),
        pytest.param("ÿÿ", id="no ASCII"),
    ],
)
def test_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        base64url.decode(text)
