"""`app` and `python -m app`: imports the commands and runs one."""

import sys

from app.core.signals import ignore_harmless_signals
from app.loading import loading

_SERVICES = (["serve"], ["worker"])


def main() -> None:
    if sys.argv[1:2] in _SERVICES:
        ignore_harmless_signals()
    with loading():
        from app.cli import main as run
    run()


if __name__ == "__main__":
    main()
