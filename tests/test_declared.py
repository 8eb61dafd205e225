"""The check of each response in the tests against the OpenAPI document."""

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
async def test_an_undeclared_response_fails_the_test(number: int) -> None:
    async with running(application(router)) as client:
        with pytest.raises(AssertionError, match=f"^GET /things/{number} returned {number} "):
            await client.get(f"/things/{number}")


@pytest.mark.parametrize("path", ["/things%2f1", "/things%2F1", "/%2fthings/1", "/things/1%00", "/things/1%0a"])
async def test_a_response_without_an_operation_is_not_checked(path: str) -> None:
    async with running(application(router)) as client:
        response = await client.get(path)

    assert (response.status_code, response.json()["code"]) == (404, "not_found")
