"""base64url: `decode` accepts exactly the texts that `encode` produces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import base64url


@given(st.binary(max_size=100))
def test_decoding_an_encoded_value_returns_it(raw: bytes) -> None:
    assert base64url.decode(base64url.encode(raw)) == raw


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("YQ==", id="padding"),
        pytest.param("YR", id="bits after the last byte"),
        pytest.param("Y", id="incomplete byte"),
        pytest.param("Y Q", id="a space"),
        pytest.param("Y\nQ", id="a line break"),
        pytest.param("+/8", id="the other alphabet"),
        pytest.param("ÿÿ", id="not ASCII"),
    ],
)
def test_any_other_text_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        base64url.decode(text)
