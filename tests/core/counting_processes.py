"""Run as a program: processes that share a port for metrics, one for each number given, and that count to it.

Whoever starts it reads the port and the processes' ids, one line each as JSON, and ends it by closing its input.
"""

import asyncio
import json
import os
import signal
import sys

from app.core.config import TelemetrySettings
from app.core.observability.exposition import Exposition, exposition
from app.core.observability.metrics import Counter

COUNTED = Counter("test_counted", "What this process has counted.", what=())


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
            # In order, so that the first has number 0.
            os.read(is_ready, 1)
        sys.stdout.write(json.dumps({"port": exposed.port, "pids": workers}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
