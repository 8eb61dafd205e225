"""`python -m tests.fuzz`: schemathesis against a real server, on every operation, with every check.

The server and its PostgreSQL are started for the run and thrown away after it. All phases run (examples, coverage,
fuzzing, stateful), with data that fits the OpenAPI document and data that does not, as an administrator and as a user.
The same seed gives the same cases. No failure is known and forgiven; what `hooks.py` lets pass is what no schema can say.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from http import HTTPStatus
from pathlib import Path

from pydantic import SecretStr

from app.core.config import DatabaseSettings
from app.dev.embedded_postgres import Cluster, EmbeddedPostgresError
from app.migrations import runner
from app.users.roles import Role
from tests.servers import Server, real_server

ROOT = Path(__file__).parents[2]
ROLES = [role.value for role in Role]
# Generated callers come from one address, faster than any person.
LIMITLESS = {"APP_RATE_LIMIT__ENABLED": "false", "APP_AUTH__HASH_QUEUE": "10000"}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=400, help="most cases of each operation in a phase")
    parser.add_argument("--at-least", type=int, default=20_000, help="fail when fewer cases than this were generated")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same cases")
    parser.add_argument("--roles", choices=ROLES, nargs="+", default=ROLES, help="who calls; everybody, unless said")
    return parser.parse_args()


def main() -> int:
    """Run it once for each role, and give the exit code."""
    options = _options()
    with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory), durable=False) as cluster:
        passed, generated = True, 0
        for role in options.roles:
            cluster.make_database(role)
            report = Path(directory) / f"{role}.json"
            passed &= asyncio.run(_fuzz(cluster.url(role), role, report, options))
            generated += json.loads(report.read_text())["test_cases"]["generated"]
    print(f"{generated:,} cases generated, as {' and '.join(options.roles)}")
    if generated < options.at_least:
        print(f"That is fewer than {options.at_least:,}: raise --examples.", file=sys.stderr)
    return 0 if passed and generated >= options.at_least else 1


async def _fuzz(url: str, role: str, report: Path, options: argparse.Namespace) -> bool:
    await runner.upgrade(DatabaseSettings(url=SecretStr(url)))
    async with real_server(url, **LIMITLESS) as server:
        print(f"As {role}", flush=True)
        code = await asyncio.to_thread(_schemathesis, server.base_url, url, role, report, options)
        return code == 0 and _is_unharmed(server)


def _schemathesis(base_url: str, url: str, role: str, report: Path, options: argparse.Namespace) -> int:
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{base_url}/openapi.json", "--no-color"),
        *("--seed", str(options.seed), "--max-examples", str(options.examples), "--report-json-path", str(report)),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
        "FUZZ_URL": base_url,
        "FUZZ_DATABASE_URL": url.replace("+asyncpg", ""),
        "FUZZ_ROLE": role,
    }
    # Where it leaves its notes: what one run has found must not change the next.
    return subprocess.run(command, cwd=report.parent, env=environment, check=False).returncode


def _is_unharmed(server: Server) -> bool:
    """Say whether the server never failed, whatever the checks thought of its answers; print what it answered."""
    statuses = Counter(int(record["status"]) for record in server.records("request"))
    print("answers by status:", dict(sorted(statuses.items())))
    for record in server.records("unhandled error"):
        print(record["exception"], file=sys.stderr)
    return max(statuses) < HTTPStatus.INTERNAL_SERVER_ERROR


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EmbeddedPostgresError as error:
        sys.exit(f"fuzz: {error}")
