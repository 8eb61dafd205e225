"""Builds images with buildah and runs them with podman and runc, as root, without a daemon. The storage is below `.local`."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.conftest import ROOT, outside

PROGRAMS = ("buildah", "podman", "runc", "mmdebstrap")
_DIRECTORY = ROOT / ".local" / "image"
_STORAGE = ("--root", str(_DIRECTORY / "storage"), "--runroot", str(_DIRECTORY / "run"))
# The authorities that this machine trusts, for the downloads of a build.
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_PULL_TIMEOUT = 60.0
# What the official slim image has beyond Debian's smallest system.
_PACKAGES = ("ca-certificates", "netbase", "python3", "python3-pip", "python3-venv", "tzdata")
_CONFINED = (
    *("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"),
    # A container may not have higher limits than the machine allows this user.
    *("--ulimit=nofile=10000:10000", "--ulimit=nproc=4096:4096"),
)


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def run(*command: str, timeout: float | None = None, is_checked: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command. If it fails, the error has its output."""
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, env=outside(), cwd=ROOT
    )
    assert ended.returncode == 0 or not is_checked, f"{' '.join(command)}\n{ended.stdout[-2000:]}{ended.stderr[-4000:]}"
    return ended


def buildah(*arguments: str) -> str:
    return run("buildah", *_STORAGE, *arguments).stdout.strip()


def podman(*arguments: str, is_checked: bool = True) -> subprocess.CompletedProcess[str]:
    return run("podman", *_STORAGE, "--cgroup-manager=cgroupfs", *arguments, is_checked=is_checked)


def inspect(image: str) -> dict[str, Any]:
    """Return what podman knows about an image."""
    found: list[dict[str, Any]] = json.loads(podman("image", "inspect", image).stdout)
    return found[0]


def base_image(dockerfile: str) -> str:
    """Return the base image of the Dockerfile: pulled, or made of Debian's packages where the registry cannot be reached."""
    found = re.search(r"(?m)^ARG BASE=(\S+:(\d+\.\d+)-slim-(\w+))$", dockerfile)
    assert found
    name, python, suite = found.groups()
    if podman("image", "exists", name, is_checked=False).returncode and not _pull(name):
        _make_base(name, suite)
    assert f"Python {python}." in podman("run", *options(), "--rm", name, "python", "--version").stdout
    return name


def _pull(name: str) -> bool:
    try:
        return run("buildah", *_STORAGE, "pull", name, timeout=_PULL_TIMEOUT, is_checked=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _make_base(name: str, suite: str) -> None:
    archive = _DIRECTORY / f"{suite}.tar"
    packages = f"--include={','.join(_PACKAGES)}"
    link = 'ln -s python3 "$1/usr/bin/python"'
    run("mmdebstrap", "--variant=minbase", packages, f"--customize-hook={link}", suite, str(archive))
    container = buildah("from", "scratch")
    buildah("add", container, str(archive), "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
    buildah("commit", "--rm", container, name)
    archive.unlink()


def build(context: Path, tag: str) -> str:
    """Build the Dockerfile in this directory without a cache, and return the digest of the image."""
    trusted = [f"--volume={_AUTHORITIES}:{_AUTHORITIES}:ro"] if _AUTHORITIES.exists() else []
    # The format of docker contains the name of the container in which it was built.
    reproducible = ("--no-cache", "--timestamp=0", "--format=oci", "--pull-never")
    buildah("build", "--isolation=chroot", *reproducible, *trusted, f"--tag={tag}", str(context))
    digest: str = inspect(tag)["Digest"]
    return digest


def options() -> Sequence[str]:
    """Return options for a container that is confined like those of deploy/compose.yaml, in the network of this machine."""
    return ("--runtime=runc", "--network=host", *_CONFINED, "--tmpfs=/tmp")


@contextmanager
def container(image: str, *arguments: str, environment: dict[str, str]) -> Iterator[str]:
    """Run a container until the block ends, and yield its name."""
    name = f"test-{uuid4().hex[:12]}"
    variables = [f"--env={key}={value}" for key, value in environment.items()]
    podman("run", "--detach", f"--name={name}", "--log-driver=k8s-file", *options(), *variables, image, *arguments)
    try:
        yield name
    finally:
        podman("rm", "--force", "--time=0", name)
