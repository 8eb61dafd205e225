import signal

import pytest
from httpx2 import AsyncClient

from tests.servers import real_server


async def test_a_server_is_ready_logs_its_requests_and_ends_when_told(clone_url: str) -> None:
    async with real_server(clone_url) as server, AsyncClient(base_url=server.base_url) as client:
        response = await client.get("/livez")

        assert response.status_code == 200
        await server.wait_for_line(response.headers["X-Request-ID"])
        assert {"/livez", "/readyz"} == {record["route"] for record in server.records("request")}
        code = await server.stop()

    assert code in {0, -signal.SIGTERM}


async def test_a_server_that_does_not_end_is_killed(clone_url: str) -> None:
    async with real_server(clone_url) as server:
        server.process.send_signal(signal.SIGSTOP)

        code = await server.stop(within=0.1)

    assert code == -signal.SIGKILL


async def test_a_server_that_cannot_start_fails_with_what_it_said(clone_url: str) -> None:
    with pytest.raises(RuntimeError, match="exit code 1") as failure:
        async with real_server(clone_url, APP_SERVER__PORT="many"):
            pytest.fail("this cannot start")

    assert "APP_SERVER__PORT" in str(failure.value.__notes__)
