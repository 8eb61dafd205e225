"""The comparison of every answer with the OpenAPI document: what it finds, and what it leaves alone."""

import pytest
from fastapi import HTTPException

from app.core.http import routing
from app.core.http.access import public
from tests.conftest import running
from tests.core.applications import application

router = routing.router()


@router.get("/things/{number}", openapi_extra=public)
async def read_thing(number: int) -> None:
    raise HTTPException(number)


@pytest.mark.parametrize("number", [402, 404])
async def test_an_answer_that_is_not_declared_fails_the_test(number: int) -> None:
    async with running(application(router)) as client:
        with pytest.raises(AssertionError, match=f"^GET /things/{number} answers {number} "):
            await client.get(f"/things/{number}")


@pytest.mark.parametrize("path", ["/things%2f1", "/things%2F1", "/%2fthings/1", "/things/1%00", "/things/1%0a"])
async def test_an_address_that_reaches_no_operation_is_compared_with_none(path: str) -> None:
    async with running(application(router)) as client:
        response = await client.get(path)

    assert (response.status_code, response.json()["code"]) == (404, "not_found")
