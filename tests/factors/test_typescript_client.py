"""Both legs of a login through a generated TypeScript client, with the program of `docs/second-factor.md`."""

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest
from httpx2 import AsyncClient

from app.core.config import Settings
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.auth.post import bearer, pair_of
from tests.conftest import ROOT, LoggedIn, cloned, make_settings, outside
from tests.factories import PASSWORD, make_user
from tests.factors.phone import Enrolled, enrol, live_sessions
from tests.listings import listings
from tests.servers import Server, real_server

PAGE = ROOT / "docs" / "second-factor.md"
PROGRAMS = ROOT / "tests" / "factors" / "typescript"
LOCK = PROGRAMS / "package-lock.json"
INSTALLED = ROOT / ".local" / "typescript"
# Codes of npm for a registry that it cannot reach.
OFFLINE = ("EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENETUNREACH", "ENOTFOUND", "ETIMEDOUT")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="node or npm is not installed"),
]


@dataclass
class Programs:
    """The compiled programs, a running server and an account of each kind."""

    directory: Path
    server: Server
    database: Database
    plain: str
    owner: Enrolled

    async def run(self, program: str, email: str, *arguments: str) -> tuple[int, list[str]]:
        """Run a program that logs in, and return its exit code and its lines."""
        code, output = await execute(
            self.directory, "node", program, email, PASSWORD, *arguments, API=self.server.base_url
        )
        return code, output.splitlines()


async def execute(directory: Path, *command: str, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env=outside() | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def check(directory: Path, *command: str) -> None:
    code, output = await execute(directory, *command)
    assert code == 0, output


async def install() -> Path:
    """Install the packages of the lock file, whose digests npm checks, and return their folder. Only the first run needs the registry."""
    target = INSTALLED / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    if not target.exists():
        INSTALLED.mkdir(parents=True, exist_ok=True)
        fresh = Path(mkdtemp(dir=INSTALLED))
        for name in ("package.json", LOCK.name):
            shutil.copy(PROGRAMS / name, fresh)
        code, output = await execute(fresh, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        if code and any(reason in output for reason in OFFLINE):
            pytest.skip("npm does not reach its registry, so openapi-typescript is not installed")
        assert code == 0, output
        await asyncio.to_thread(fresh.rename, target)
    return target / "node_modules"


@pytest.fixture(scope="module")
async def directory(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated types and the programs, checked and compiled."""
    modules = await install()
    directory = tmp_path_factory.mktemp("typescript")
    shutil.copytree(PROGRAMS, directory, dirs_exist_ok=True)
    (directory / "node_modules").symlink_to(modules)
    (directory / "openapi.json").write_text(json.dumps(create_app(settings).openapi()))
    (listing,) = (listing for listing in listings(PAGE) if listing.path == "login.ts")
    address = '"https://api.example.com"'
    assert listing.text.count(address) == 1
    declaration = "declare const process: { env: Record<string, string> };\n"
    (directory / "login.ts").write_text(declaration + listing.text.replace(address, 'process.env.API ?? ""'))
    await check(directory, "node_modules/.bin/openapi-typescript", "openapi.json", "--output", "api.d.ts")
    await check(directory, "node_modules/.bin/tsc", "--project", ".")
    return directory


@pytest.fixture(scope="module")
async def programs(directory: Path, template_url: str, hasher: PasswordHasher) -> AsyncIterator[Programs]:
    async with cloned(template_url) as url:
        database = Database(make_settings(url).database)
        async with database.begin() as session:
            plain, protected = [await make_user(session, hasher) for _ in range(2)]
        async with real_server(url) as server, AsyncClient(base_url=server.base_url, timeout=60) as client:
            headers = bearer(await pair_of(client, protected.email))
            owner = await enrol(client, LoggedIn(str(protected.id), protected.email, headers))
            yield Programs(directory, server, database, plain.email, owner)
        await database.dispose()


async def test_an_account_without_a_second_factor_logs_in_with_one_request(programs: Programs) -> None:
    code, lines = await programs.run("main.js", programs.plain)

    assert (code, lines) == (0, [f"logged in as {programs.plain} after 1"])


async def test_an_account_with_a_second_factor_logs_in_with_two_requests(programs: Programs) -> None:
    email = programs.owner.email

    code, lines = await programs.run("main.js", email, programs.owner.phone.code(steps=1))

    assert (code, lines) == (0, ["asked for totp or recovery_code", f"logged in as {email} after 2"])
    async with programs.database.begin() as session:
        live = await live_sessions(session, programs.owner.user_id)
    # That of the setup, and that of this login.
    assert [(one.acr, one.amr) for one in live] == [("aal2", ["pwd", "otp", "mfa"])] * 2


async def test_a_wrong_code_is_refused_with_a_sentence(programs: Programs) -> None:
    code, lines = await programs.run("main.js", programs.owner.email, programs.owner.phone.wrong())

    sentence = "These credentials are not valid. They are wrong, expired, or have been used before."
    assert (code, lines) == (1, ["asked for totp or recovery_code", f"refused after 2: {sentence}"])


async def test_a_program_that_knows_nothing_of_factors_gets_an_error_that_it_can_show(programs: Programs) -> None:
    code, lines = await programs.run("password_only.js", programs.owner.email)
    plain_code, plain_lines = await programs.run("password_only.js", programs.plain)

    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("mfa_required: ")
    assert "second factor" in lines[0]
    assert plain_code == 0
    assert plain_lines[0].startswith("logged in for ")


def test_the_lock_file_pins_digests_and_names_no_registry() -> None:
    packages = json.loads(LOCK.read_text())["packages"]
    installed = [package for path, package in packages.items() if path]

    assert len(installed) > 3
    assert all(package["integrity"].startswith("sha512-") for package in installed)
    assert [package for package in installed if "resolved" in package] == []
    assert "://" not in "".join(json.dumps({**package, "funding": None}) for package in installed)
