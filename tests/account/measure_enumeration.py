"""Measures whether the time of a response reveals that an account exists.

    python -m tests.account.measure_enumeration [--samples 1000] [--cost 4]

For login, and for each operation that mails to an address, it sends requests for an address of each kind and for an unknown address, in
random order, to a separate server process with all limits. The jobs stay in the queue: in production another process runs them.
The area under the ROC curve is the probability that a guess from the time alone is right; 0.5 is chance. The report adds its upper
95 % bound from a bootstrap. A cheap hash hides less, so a low cost is the stricter test.
"""

import argparse
import asyncio
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any, override

from httpx2 import AsyncClient

from app.auth.settings import AuthSettings
from app.core.db.database import Database, WriteSession
from app.core.security.hashing import PasswordHasher
from app.dev.postgres.cluster import server_for_tests
from tests.conftest import ROOT, cloned, make_settings, make_template
from tests.factories import make_user
from tests.servers import real_server

TARGET = 0.55
TRUSTED_PROXIES = ["127.0.0.1/32"]
NOBODY = "nobody"
KINDS: dict[str, dict[str, Any]] = {
    "known": {},
    "disabled": {"is_active": False},
    "unverified": {"email_verified_at": None},
    "passwordless": {"hashed_password": None},
}
_WRONG = "not the password, surely"
_LOGIN = "POST /api/v1/auth/token"
# The operations that mail to an address, each with the other members of its body.
MAILING: dict[str, dict[str, str]] = {
    "POST /api/v1/auth/register": {"password": _WRONG},
    "POST /api/v1/auth/password/forgot": {},
    "POST /api/v1/auth/verify-email/resend": {},
}
OPERATIONS = (_LOGIN, *MAILING)
# As many as keep each account within its limits.
OF_EACH = 25
_BOOTSTRAPS = 500

_addresses = count(1)
type Times = dict[str, list[float]]


@dataclass(frozen=True)
class Finding:
    """How well the time of one operation tells one kind of account from none."""

    operation: str
    kind: str
    area: float
    upper: float
    difference: float

    @override
    def __str__(self) -> str:
        return f"{self.operation:40}{self.kind:14}{self.area:.3f}   {self.upper:.3f}   {1e6 * self.difference:+8.0f} µs"


async def add_accounts(session: WriteSession, hasher: PasswordHasher, *, of_each: int = OF_EACH) -> None:
    """Make the accounts that are asked for."""
    for kind, state in KINDS.items():
        for number in range(of_each):
            await make_user(session, hasher, **{"email": email_of(kind, number), **state})


def email_of(kind: str, number: int) -> str:
    """Give an address of a kind: all are of one length."""
    return f"{kind:x<12}{number:02}@example.com"


async def sample(
    client: AsyncClient, operation: str, rounds: int, *, of_each: int = OF_EACH, warm_up: int = 20, seed: int = 0
) -> Times:
    """Time an operation for every kind of address in turn, in random order."""
    chance = random.Random(seed)  # noqa: S311  # No secret.
    times: Times = defaultdict(list)
    for number in range(-warm_up, rounds):
        for kind in chance.sample([*KINDS, NOBODY], len(KINDS) + 1):
            elapsed = await time_of(client, operation, email_of(kind, number % of_each))
            if number >= 0:
                times[kind].append(elapsed)
    return times


async def time_of(client: AsyncClient, operation: str, email: str) -> float:
    started = perf_counter()
    status = await ask(client, operation, email)
    elapsed = perf_counter() - started
    assert status == (400 if operation == _LOGIN else 202), (operation, status)
    return elapsed


async def ask(client: AsyncClient, operation: str, email: str) -> int:
    """Ask for an address, each time from another place, and give the status."""
    number = next(_addresses)
    headers = {"X-Forwarded-For": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"}
    path = operation.removeprefix("POST ")
    if operation == _LOGIN:
        form = {"grant_type": "password", "username": email, "password": _WRONG}
        return (await client.post(path, data=form, headers=headers)).status_code
    return (await client.post(path, json={"email": email, **MAILING[operation]}, headers=headers)).status_code


def judge(operation: str, times: Times, *, seed: int = 0) -> list[Finding]:
    """Return how well the times of each kind differ from those of an unknown address."""
    return [_judge(operation, kind, times[kind], times[NOBODY], seed) for kind in times if kind != NOBODY]


def _judge(operation: str, kind: str, ours: list[float], nobodys: list[float], seed: int) -> Finding:
    difference = median(ours) - median(nobodys)
    # An attacker knows which of the two is slower.
    slower, faster = (ours, nobodys) if _area(ours, nobodys) >= 0.5 else (nobodys, ours)
    chance = random.Random(seed)  # noqa: S311  # No secret.
    drawn = sorted(
        _area(chance.choices(slower, k=len(slower)), chance.choices(faster, k=len(faster))) for _ in range(_BOOTSTRAPS)
    )
    return Finding(operation, kind, _area(slower, faster), drawn[int(0.95 * _BOOTSTRAPS)], difference)


def _area(slower: Sequence[float], faster: Sequence[float]) -> float:
    ranked = sorted([*((time, True) for time in slower), *((time, False) for time in faster)])
    ranks = sum(rank for rank, (_, is_slower) in enumerate(ranked, 1) if is_slower)
    return (ranks - len(slower) * (len(slower) + 1) / 2) / (len(slower) * len(faster))


async def measure(server_url: str, samples: int, cost: int) -> list[Finding]:
    """Measure every operation against a server process of its own."""
    findings = []
    async with cloned(await make_template(server_url)) as url:
        settings = make_settings(url, auth={"bcrypt_cost": cost})
        database, hasher = Database(settings.database), PasswordHasher(settings.of(AuthSettings))
        async with database.begin() as session:
            await add_accounts(session, hasher)
        hasher.close()
        await database.dispose()
        environment = {
            "APP_AUTH__BCRYPT_COST": str(cost),
            "APP_SERVER__TRUSTED_PROXIES": str(TRUSTED_PROXIES).replace("'", '"'),
        }
        async with (
            real_server(url, **environment) as server,
            AsyncClient(base_url=server.base_url, timeout=60) as client,
        ):
            for operation in OPERATIONS:
                found = judge(operation, await sample(client, operation, samples))
                sys.stdout.write("".join(f"{finding}\n" for finding in found))
                sys.stdout.flush()
                findings += found
    return findings


def main() -> int:
    """Print the findings; fail when one of them misses the target."""
    parser = argparse.ArgumentParser(description="Does the time of an answer tell whether there is an account?")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--cost", type=int, default=4)
    options = parser.parse_args()
    sys.stdout.write("operation                               kind          area    ≤ 95 %  difference of medians\n")
    with server_for_tests(ROOT) as url:
        findings = asyncio.run(measure(url, options.samples, options.cost))
    worst = max(finding.upper for finding in findings)
    sys.stdout.write(f"worst bound {worst:.3f}, target {TARGET}\n")
    return int(worst > TARGET)


if __name__ == "__main__":
    sys.exit(main())
