"""`python -m benchmarks.hashing SECONDS THREADS`: print the number of bcrypt checks a second with these threads."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import bcrypt

from benchmarks.seed import BCRYPT_COST


def run(seconds: float, threads: int) -> float:
    """Check passwords for this time. Returns the rate of completed checks a second."""
    hashed = bcrypt.hashpw(b"password", bcrypt.gensalt(BCRYPT_COST))
    started = time.perf_counter()

    def check() -> int:
        done = 0
        while time.perf_counter() - started < seconds:
            bcrypt.checkpw(b"password", hashed)
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        checks = sum(future.result() for future in [pool.submit(check) for _ in range(threads)])
    return checks / (time.perf_counter() - started)


if __name__ == "__main__":
    print(run(float(sys.argv[1]), int(sys.argv[2])))
