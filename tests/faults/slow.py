"""Clients that never complete their requests. They run in a separate process, so that they slow down only the server."""

import asyncio
import sys
from contextlib import suppress

_HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


async def _drip(port: int) -> None:
    """Send a header byte by byte. Connect again when the server closes the connection."""
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_HEAD)
            while not writer.is_closing():
                writer.write(b"a")
                await asyncio.sleep(1)


async def _main(port: int, count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_drip(port))
            # Other clients share the backlog of the listening socket.
            await asyncio.sleep(0.0005)
        sys.stdout.write("all are connected\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
