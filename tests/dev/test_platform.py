"""Platforms that are not supported."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["app.cli", "app.asgi", "app.dev.__main__"])
def test_windows_is_refused_with_a_sentence(module: str) -> None:
    program = f"import sys; sys.platform = 'win32'; import {module}"

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "app: Windows is not supported; use WSL, Linux or macOS\n"
