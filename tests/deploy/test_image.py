"""The image of the Dockerfile: it builds to one digest, runs confined, and drains. `make image` runs this, as root.

Without a registry, the base image is made of Debian's packages. It has the same Python version as the official one.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import asyncpg
import pytest
from httpx2 import AsyncClient, HTTPError

from app.dev.ports import free_port
from tests.conftest import ROOT
from tests.deploy.containers import base_image, build, container, inspect, missing_programs, options, podman
from tests.volume import plain

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif("IMAGE" not in os.environ, reason="takes minutes: make image"),
    pytest.mark.skipif(missing_programs() != [], reason=f"not installed: {', '.join(missing_programs())}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to build without a daemon"),
]

CONTEXT = ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "requirements", "src")
TAGS = ("localhost/app:one", "localhost/app:two")
USER = "10001"
_START_TIMEOUT = 60
_MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def digest() -> Iterator[str]:
    """The digest of the image, which has the first tag."""
    base = base_image((ROOT / "Dockerfile").read_text())
    yield build(ROOT, TAGS[0])
    sizes = [inspect(image)["Size"] // _MEGABYTE for image in (TAGS[0], base)]
    print(f"\nimage: {sizes[0]} MB, of which {sizes[1]} MB are the base")  # noqa: T201  # The result.


def test_two_builds_have_one_digest(digest: str, tmp_path: Path) -> None:
    for name in CONTEXT:
        # Not with the times of the files.
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)

    assert build(tmp_path, TAGS[1]) == digest

    with (tmp_path / "src" / "app" / "__init__.py").open("a") as file:
        file.write("# changed\n")
    assert build(tmp_path, TAGS[1]) != digest


@pytest.mark.usefixtures("digest")
async def test_the_image_runs_confined_and_drains(clone_url: str) -> None:
    connection = await asyncpg.connect(plain(clone_url))
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    port = str(free_port())
    environment = {
        "APP_DATABASE__URL": plain(clone_url),
        "APP_DATABASE__REQUIRE_TLS": "false",
        "APP_AUTH__SIGNING_KEYS": podman("run", "--rm", *options(), TAGS[0], "keys", "generate", "-").stdout,
        "APP_SERVER__PUBLIC_URL": "https://api.example.com",
        "APP_SERVER__PORT": port,
        "APP_MAIL__URL": "smtp://localhost:25",
        "APP_MAIL__FROM_ADDRESS": "no-reply@example.com",
    }
    variables = [f"--env={name}={value}" for name, value in environment.items()]
    podman("run", "--rm", *options(), *variables, TAGS[0], "migrate")
    assert await connection.fetchval("SELECT count(*) FROM users") == 0
    await connection.close()

    started = monotonic()
    with container(TAGS[0], "serve", "--workers", "2", environment=environment) as name:
        async with AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            while not await is_ready(client):
                assert monotonic() - started < _START_TIMEOUT, podman("logs", name)
            ready = monotonic()
            assert podman("exec", name, "app", "healthcheck").stdout.endswith("is ready\n")
            state = status(podman("inspect", "--format={{.State.Pid}}", name).stdout.strip())
            written = podman("exec", name, "sh", "-c", "touch /opt/app/file", is_checked=False)
            podman("exec", name, "touch", "/tmp/file")  # noqa: S108  # In the container.

            stopping = monotonic()
            podman("kill", "--signal=TERM", name)
            responses = [await client.get(path) for path in ("/readyz", "/livez")]
        code = podman("wait", name).stdout.strip()

    print(f"\nready after {ready - started:.1f} s, ended {monotonic() - stopping:.1f} s after SIGTERM")  # noqa: T201  # The result.
    assert state["Uid"] == [USER] * 4
    assert set(state["CapEff"] + state["CapBnd"]) == {"0" * 16}
    assert state["NoNewPrivs"] == ["1"]
    assert "Read-only file system" in written.stderr
    assert [response.status_code for response in responses] == [503, 200]
    assert code == "0"


async def is_ready(client: AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == 200
    except HTTPError:
        return False


def status(process: str) -> dict[str, list[str]]:
    """Return what the kernel says about a process."""
    text = Path(f"/proc/{process}/status").read_text()
    return {name: values.split() for name, values in re.findall(r"(?m)^(\w+):\t(.*)$", text)}
