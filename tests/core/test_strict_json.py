"""The parser rejects JSON that two parsers could read differently."""

import pytest

from app.core import strict_json


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]'])
def test_a_repeated_name_is_rejected(text: str) -> None:
    with pytest.raises(strict_json.DuplicateNameError):
        strict_json.loads(text)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity", "1e999", "-1e999", "", "{", "'a'", "[1] 2"])
def test_invalid_json_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        strict_json.loads(text)

    assert not isinstance(refused.value, strict_json.DuplicateNameError)


def test_a_name_may_occur_in_different_objects() -> None:
    assert strict_json.loads('[{"a": 1.5}, {"a": null}]') == [{"a": 1.5}, {"a": None}]
