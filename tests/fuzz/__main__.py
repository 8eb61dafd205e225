"""`make fuzz`: runs schemathesis against a server process, once as an administrator and once as an ordinary user.

FUZZ=quick sends few cases. FUZZ_EXAMPLES sets the maximum number of cases per operation and phase, FUZZ_SEED the seed of the
random generator, and FUZZ_AS the roles.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from app.auth.settings import AuthSettings
from app.core.security.hashing import PasswordHasher
from app.dev.postgres.cluster import server_for_tests
from tests.conftest import ROOT, cloned, make_settings, template
from tests.factories import PASSWORD
from tests.servers import real_server

HERE = Path(__file__).parent
SETTINGS = {
    "APP_RATE_LIMIT__ENABLED": "false",
    # Serve /openapi.json in every environment.
    "APP_SERVER__DOCS": "true",
    "APP_LOG__LEVEL": "warning",
    # docs/input.md promises 20 ms. Beside several clients, one attempt can take longer.
    "APP_LOG__SLOW_CALLBACK": "100ms",
}


async def _fuzz(server_url: str, environment: Mapping[str, str]) -> int:
    roles = environment.get("FUZZ_AS", "admin user").split()
    async with template(server_url) as empty:
        return max(await asyncio.gather(*(_fuzz_as(role, empty, environment) for role in roles)))


async def _fuzz_as(role: str, empty: str, environment: Mapping[str, str]) -> int:
    async with cloned(empty) as url, real_server(url, **SETTINGS) as server:
        code, output = await _run(server.base_url, url, role, environment)
        # A traceback in the log is a defect, even if all checks of the response passed.
        defects = [record.get("exception", str(record)) for record in server.records("unhandled error")]
        # Each request runs through this middleware. The document is built once, and takes longer.
        stacks = [record["stack"] for record in server.records("event loop held")]
        defects += [stack for stack in stacks if "http/middleware.py" in stack and "openapi.py" not in stack]
    sys.stdout.write("\n".join([f"As {role}:", output, *defects, ""]))
    return code or bool(defects)


async def _run(base_url: str, database_url: str, role: str, environment: Mapping[str, str]) -> tuple[int, str]:
    account = {
        "FUZZ_DATABASE": database_url.replace("+asyncpg", ""),
        "FUZZ_ROLE": role,
        "FUZZ_HASH": await _hash(database_url),
        "FUZZ_PASSWORD": PASSWORD,
        "FUZZ_URL": base_url,
        "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
    }
    examples = environment.get("FUZZ_EXAMPLES") or ("5" if environment.get("FUZZ") == "quick" else "400")
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(HERE / "schemathesis.toml"), "run"),
        *(f"{base_url}/openapi.json", "--max-examples", examples, "--seed", environment.get("FUZZ_SEED", "20261126")),
        env=dict(environment) | account,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def _hash(database_url: str) -> str:
    settings: AuthSettings = make_settings(database_url).of(AuthSettings)
    hasher = PasswordHasher(settings)
    try:
        return await hasher.hash(PASSWORD)
    finally:
        hasher.close()


if __name__ == "__main__":
    with server_for_tests(ROOT) as server_url:
        code = asyncio.run(_fuzz(server_url, os.environ))
    sys.exit(code)
