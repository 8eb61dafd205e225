"""`app` and `python -m app`: imports the commands and runs one."""

import sys

from app.loading import loading

_SERVICES = (["serve"], ["worker"])


def main() -> None:
    if sys.argv[1:] == ["healthcheck"]:
        # To import the other commands would take ten times as long as the check.
        from app import healthcheck

        sys.exit(healthcheck.run())
    if sys.argv[1:2] in _SERVICES:
        from app.core.signals import ignore_harmless_signals

        ignore_harmless_signals()
    with loading():
        from app.cli import main as run
    run()


if __name__ == "__main__":
    main()
