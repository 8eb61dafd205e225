"""``python -m app.dev``: what the Makefile calls."""

import signal
import sys

import typer

from app.dev import run as make_run
from app.dev.embedded_postgres import Cluster, EmbeddedPostgresError

# Tracebacks with local variables would show passwords and keys.
program = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@program.command()
def run() -> None:
    """Start the application on a database of its own."""
    sys.exit(make_run.run())


@program.command()
def database() -> None:
    """Start only the embedded database and print its URL, until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Cluster(make_run.LOCAL / "postgres") as cluster:
            typer.echo(cluster.url().replace("+asyncpg", ""))
            signal.pause()
    except EmbeddedPostgresError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    program()
