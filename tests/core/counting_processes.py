"""A program that starts one process per argument. The processes share a port for metrics, and each counts to its argument.

The program writes the port and the process ids to standard output as one line of JSON. It ends when its input is closed.
"""

import asyncio
import json
import os
import signal
import sys

from app.core.config import TelemetrySettings
from app.core.observability.exposition import Exposition, exposition
from app.core.observability.metrics import Counter

COUNTED = Counter("test_counted", "Events of this test.", what=())


async def serve(exposed: Exposition, ready: int) -> None:
    async with exposed.serving([], []):
        os.write(ready, b".")
        await asyncio.Event().wait()


def become_worker(exposed: Exposition, number: int, ready: int) -> None:
    for _ in range(number):
        COUNTED.count("things")
    asyncio.run(serve(exposed, ready))


def main(numbers: list[int]) -> None:
    with exposition(TelemetrySettings(metrics_port=0)) as exposed:
        assert exposed
        is_ready, ready = os.pipe()
        workers = []
        for number in numbers:
            pid = os.fork()
            if not pid:
                become_worker(exposed, number, ready)
            workers.append(pid)
            # Wait for each process before the next one starts, so that the first has worker number 0.
            os.read(is_ready, 1)
        sys.stdout.write(json.dumps({"port": exposed.port, "pids": workers}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
