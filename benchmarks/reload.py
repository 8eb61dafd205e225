"""`python -m benchmarks.reload`: the time from saving a file until `make run` serves the new version, in a copy of the source."""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.dev.ports import free_port
from benchmarks.load import LoadError
from benchmarks.servers import ROOT

_TIMEOUT = 120.0
# Time after which the process for the next reload has imported the libraries, and nothing else runs.
_PAUSE = 4.0


@contextmanager
def running(copy: Path, port: int) -> Iterator[None]:
    """Run `make run` with the source in `copy`, on a database of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("APP_")}
    variables = {"PYTHONPATH": str(copy / "src"), "PORT": str(port), "RELOAD": "1"}
    command = (sys.executable, "-m", "app.dev", "run")
    with (copy / "run.log").open("w") as log:
        process = subprocess.Popen(command, cwd=copy, env=inherited | variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_TIMEOUT)


def wait_for(port: int, text: str) -> float:
    """Return the seconds until the page at `/` contains the text. Raises `LoadError` after two minutes."""
    began = time.monotonic()
    while time.monotonic() - began < _TIMEOUT:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=_TIMEOUT) as response:
                if text in response.read().decode():
                    return time.monotonic() - began
        except OSError:
            pass
        time.sleep(0.01)
    message = f"make run does not serve {text!r}; start it by hand to see why"
    raise LoadError(message)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="reload-") as scratch:
        copy, port = Path(scratch), free_port()
        shutil.copytree(ROOT / "src", copy / "src")
        shutil.copy2(ROOT / "pyproject.toml", copy)
        product = copy / "src/app/core/product.py"
        text = product.read_text()
        with running(copy, port):
            wait_for(port, "")
            times = []
            for number in range(rounds):
                time.sleep(_PAUSE)
                name = f"Version {number}."
                product.write_text(re.sub("^NAME = .*$", f'NAME = "{name}"', text, flags=re.MULTILINE))
                times.append(wait_for(port, name))
    print(f"median {statistics.median(times):.2f} s, {min(times):.2f} to {max(times):.2f} s in {rounds} rounds")


if __name__ == "__main__":
    main()
