"""Installs the pinned requirements of requirements/dev.txt into .venv. Does nothing if .venv is current.

Uses only the standard library, because it runs before anything is installed.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Written last and removed first, so an environment with this file is complete.
STAMP = VENV / "complete"
LOCK = ROOT / ".local" / "setup.lock"
REQUIREMENTS = ROOT / "requirements" / "dev.txt"
MINIMUM_FREE_BYTES = 50_000_000
_INPUTS = (REQUIREMENTS, ROOT / "pyproject.toml", Path(__file__))


class SetupError(Exception):
    """The environment could not be set up. The text is one sentence with the reason."""


def is_current() -> bool:
    try:
        return STAMP.read_text() == fingerprint(requested_interpreter())
    except FileNotFoundError:
        return False


def requested_interpreter() -> str:
    """Return the interpreter requested now or, without a request, the one requested when the environment was created."""
    return os.environ.get("PYTHON") or STAMP.read_text().partition("\n")[0]


def fingerprint(choice: str) -> str:
    # The fingerprint contains the path, because a moved environment still refers to its old path.
    facts = [sys.version, str(ROOT), *(hashlib.sha256(path.read_bytes()).hexdigest() for path in _INPUTS)]
    return "\n".join([choice, *facts])


def update_environment() -> None:
    LOCK.parent.mkdir(exist_ok=True)
    with locked():
        # The previous holder of the lock may have set up the environment.
        if is_current_by_its_python():
            return
        if not STAMP.exists() or not same_interpreter():
            create_environment()
        STAMP.unlink(missing_ok=True)
        install()
        STAMP.write_text(fingerprint(os.environ.get("PYTHON", "")))


@contextmanager
def locked() -> Iterator[None]:
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("Waiting for another make to set up .venv …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_current_by_its_python() -> bool:
    return PYTHON.exists() and succeeds(PYTHON, "-I", "-S", __file__, "--is-current")


def same_interpreter() -> bool:
    return PYTHON.exists() and succeeds(PYTHON, "-I", "-c", f"import sys; sys.exit(sys.version != {sys.version!r})")


def succeeds(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def create_environment() -> None:
    log(f"Creating .venv with Python {sys.version.partition(' ')[0]} ({sys.executable}) …")
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    shutil.rmtree(VENV, ignore_errors=True)
    run("the environment .venv could not be created", sys.executable, "-I", "-m", "venv", VENV)


def install() -> None:
    log("Installing the pinned requirements of requirements/dev.txt …")
    uv_pin = VENV / "uv.txt"
    uv_pin.write_text(pin_of("uv"))
    pip = [PYTHON, "-I", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--require-hashes"]
    run("uv could not be installed", *pip, "--requirement", uv_pin)
    uv = [VENV / "bin" / "uv", "pip", "install", "--quiet", "--python", PYTHON, *cache_options()]
    try:
        # The file pins every package, so nothing is resolved, and version limits between packages are ignored.
        run("uv failed", *uv, "--require-hashes", "--no-deps", "--requirement", REQUIREMENTS)
    except SetupError as error:
        # pip and uv read different settings. If a mirror or a certificate is configured only for pip, pip can still install.
        log(f"{error}\nTrying again with pip …")
        run("the pinned requirements could not be installed", *pip, "--no-deps", "--requirement", REQUIREMENTS)
    if former := installed_from_here():
        # Otherwise a distribution with a former name would stay installed next to the current one.
        run(
            "the application could not be uninstalled",
            PYTHON,
            "-I",
            "-m",
            "pip",
            "uninstall",
            "--quiet",
            "--yes",
            *former,
        )
    run(
        "the application itself could not be installed",
        *uv,
        "--no-deps",
        "--no-build-isolation",
        "--offline",
        "--editable",
        ROOT,
    )


def installed_from_here() -> list[str]:
    """Return the names under which the application is installed."""
    records = VENV.glob("lib/*/site-packages/*.dist-info/direct_url.json")
    here = [record for record in records if json.loads(record.read_text())["url"] == ROOT.as_uri()]
    return [record.parent.name.partition("-")[0] for record in here]


def cache_options() -> list[str]:
    """Return --no-cache if the cache directory is not writable, for example without a home directory. uv would fail."""
    if "UV_CACHE_DIR" in os.environ:
        return []
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111  # Path.expanduser raises without a home directory.
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    return [] if cache.is_absolute() and os.access(existing, os.W_OK) else ["--no-cache"]


def pin_of(name: str) -> str:
    """Return the lines of one requirement: its version and its hashes."""
    pins = REQUIREMENTS.read_text().split("\n")
    first = next(number for number, line in enumerate(pins) if line.startswith(f"{name}=="))
    last = next(number for number in range(first, len(pins)) if not pins[number].endswith("\\"))
    return "\n".join(pins[first : last + 1]) + "\n"


def run(failure: str, *command: str | Path) -> None:
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        return
    output = (finished.stdout + finished.stderr).strip()
    # Some tools do not report a full disk, and some have deleted their files before they report the error.
    if os.strerror(errno.ENOSPC) in output or shutil.disk_usage(ROOT).free < MINIMUM_FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = f"{output}\n{failure}: see the reason above."
    raise SetupError(message)


def log(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    if sys.argv[1:] == ["--is-current"]:
        return 0 if is_current() else 1
    try:
        update_environment()
    except SetupError as error:
        log(str(error))
    except KeyboardInterrupt:
        log("The setup of .venv was interrupted. The next make starts it again.")
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            log(f"The disk with {ROOT} is full. Free some space and try again.")
        else:
            log(f"The environment .venv cannot be created: {error.strerror} ({error.filename}).")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
