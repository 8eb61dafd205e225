"""Makes .venv hold exactly what requirements/dev.txt pins, and does nothing when it already does.

Runs on the standard library alone, because it runs before anything is installed.
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
# Written last and removed first, so an environment with this file is a finished one.
STAMP = VENV / "complete"
LOCK = ROOT / ".local" / "setup.lock"
REQUIREMENTS = ROOT / "requirements" / "dev.txt"
ROOM_NEEDED = 50_000_000
_INPUTS = (REQUIREMENTS, ROOT / "pyproject.toml", Path(__file__))


class SetupError(Exception):
    """Says in one sentence why there is no environment."""


def is_current() -> bool:
    try:
        return STAMP.read_text() == fingerprint(recorded_choice())
    except FileNotFoundError:
        return False


def recorded_choice() -> str:
    """The interpreter asked for now, or the one asked for when the environment was made: not asking again changes nothing."""
    return os.environ.get("PYTHON") or STAMP.read_text().partition("\n")[0]


def fingerprint(choice: str) -> str:
    # The path is in it because an environment that has been moved still points to its old place.
    facts = [sys.version, str(ROOT), *(hashlib.sha256(path.read_bytes()).hexdigest() for path in _INPUTS)]
    return "\n".join([choice, *facts])


def make_current() -> None:
    LOCK.parent.mkdir(exist_ok=True)
    with locked():
        # Whoever held the lock before us may have done the work.
        if is_current_by_its_own_python():
            return
        if not STAMP.exists() or not same_interpreter():
            make_anew()
        STAMP.unlink(missing_ok=True)
        install()
        STAMP.write_text(fingerprint(os.environ.get("PYTHON", "")))


@contextmanager
def locked() -> Iterator[None]:
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Waiting for another make to finish setting up .venv …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_current_by_its_own_python() -> bool:
    return PYTHON.exists() and succeeds(PYTHON, "-I", "-S", __file__, "--is-current")


def same_interpreter() -> bool:
    return PYTHON.exists() and succeeds(PYTHON, "-I", "-c", f"import sys; sys.exit(sys.version != {sys.version!r})")


def succeeds(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def make_anew() -> None:
    say(f"Making .venv with Python {sys.version.partition(' ')[0]} ({sys.executable}) …")
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    shutil.rmtree(VENV, ignore_errors=True)
    run("the environment .venv could not be made", sys.executable, "-I", "-m", "venv", VENV)


def install() -> None:
    say("Installing what requirements/dev.txt pins …")
    uv_pin = VENV / "uv.txt"
    uv_pin.write_text(pin_of("uv"))
    pip = [PYTHON, "-I", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--require-hashes"]
    run("uv could not be installed", *pip, "--requirement", uv_pin)
    uv = [VENV / "bin" / "uv", "pip", "install", "--quiet", "--python", PYTHON, *cache_options()]
    try:
        # The file names every package: there is nothing to resolve, and no package's narrow idea of another's version to heed.
        run("uv failed", *uv, "--require-hashes", "--no-deps", "--requirement", REQUIREMENTS)
    except SetupError as error:
        # pip and uv read different settings: where only pip has been told about a mirror or a certificate, pip can still do it.
        say(f"{error}\nTrying the same with pip …")
        run("the pinned requirements could not be installed", *pip, "--no-deps", "--requirement", REQUIREMENTS)
    if former := installed_from_here():
        # Under a former name it would stay installed beside the current one.
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
    """The names under which the application is installed."""
    records = VENV.glob("lib/*/site-packages/*.dist-info/direct_url.json")
    here = [record for record in records if json.loads(record.read_text())["url"] == ROOT.as_uri()]
    return [record.parent.name.partition("-")[0] for record in here]


def cache_options() -> list[str]:
    """Without a home there can be no cache directory, and without that uv does not work unless told to."""
    if "UV_CACHE_DIR" in os.environ:
        return []
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111  # Path's own raises without a home.
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    return [] if cache.is_absolute() and os.access(existing, os.W_OK) else ["--no-cache"]


def pin_of(name: str) -> str:
    """The lines of one requirement: its version and its hashes."""
    pins = REQUIREMENTS.read_text().split("\n")
    first = next(number for number, line in enumerate(pins) if line.startswith(f"{name}=="))
    last = next(number for number in range(first, len(pins)) if not pins[number].endswith("\\"))
    return "\n".join(pins[first : last + 1]) + "\n"


def run(trouble: str, *command: str | Path) -> None:
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if finished.returncode == 0:
        return
    output = (finished.stdout + finished.stderr).strip()
    # Not every tool says why it failed, and some have made room again by the time they say so.
    if os.strerror(errno.ENOSPC) in output or shutil.disk_usage(ROOT).free < ROOM_NEEDED:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = f"{output}\n{trouble}: the reason is above."
    raise SetupError(message)


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> int:
    if sys.argv[1:] == ["--is-current"]:
        return 0 if is_current() else 1
    try:
        make_current()
    except SetupError as error:
        say(str(error))
    except KeyboardInterrupt:
        say("Setting up .venv was interrupted; the next make starts it again.")
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            say(f"The disk that holds {ROOT} is full: free some space and try again.")
        else:
            say(f"The environment .venv cannot be made: {error.strerror} ({error.filename}).")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
