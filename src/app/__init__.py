import sys

if sys.platform == "win32":  # pragma: no cover  # tests/dev/test_platform.py imports it in a process of its own.
    # The imports of Unix modules would fail one after the other, each with an error that says nothing about the reason.
    sys.exit("app: Windows is not supported; use WSL, Linux or macOS")
