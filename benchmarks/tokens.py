"""`python -m benchmarks.tokens`: the cost of reading a new access token, and of reading one again while it is cached.

It measures the CPU time of one process, without a socket or a database. New tokens and a cached token take turns.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from uuid import uuid4

from app.auth.access.tokens import AccessTokens
from app.core.security.keys import generate_key_set, parse_key_ring

_TURN = 200


def _reader() -> AccessTokens:
    ring = parse_key_ring(generate_key_set(), source="benchmark")
    return AccessTokens(ring, issuer="https://api.example.com", audience="https://api.example.com", lifetime=900)


def _issued(reader: AccessTokens) -> str:
    now = time.time()
    token, _ = reader.issue(
        user_id=uuid4(),
        session_id=uuid4(),
        version=1,
        scopes=(),
        auth_time=int(now),
        acr="aal1",
        amr=["pwd"],
        session_ends=now + 3600,
    )
    return token


def _turn(reader: AccessTokens, tokens: Sequence[str]) -> float:
    """Return the CPU time of reading one of these tokens, in microseconds."""
    began = time.process_time()
    for token in tokens:
        reader.read(token)
    return (time.process_time() - began) / len(tokens) * 1e6


def measure(rounds: int) -> dict[str, float]:
    """Return the median of both, in microseconds of CPU time."""
    reader = _reader()
    known = _issued(reader)
    reader.read(known)
    measured: dict[str, list[float]] = {"the first time": [], "again": []}
    for _ in range(rounds):
        measured["the first time"].append(_turn(reader, [_issued(reader) for _ in range(_TURN)]))
        measured["again"].append(_turn(reader, [known] * _TURN))
    return {name: statistics.median(turns) for name, turns in measured.items()}


def main() -> None:
    """Run the command, which prints both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokens", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="number of turns")
    for name, used in measure(parser.parse_args().rounds).items():
        print(f"an access token read {name}: {used:.1f} µs of CPU")


if __name__ == "__main__":
    main()
