"""``python -m app.dev.generator``: the command of `make feature`. `python -m app.dev` would load the whole application first."""

import sys
from typing import Annotated

import typer

from app.dev import guide
from app.dev.generator.errors import GeneratorError
from app.dev.generator.plan import plan

# Tracebacks with local variables would show passwords and keys.
commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@commands.command()
def feature(
    name: Annotated[str, typer.Argument(envvar="FEATURE_NAME")] = "",
    fields: Annotated[str, typer.Option(envvar="FEATURE_FIELDS", help="For example: title:str due:date:optional")] = "",
    one: Annotated[str, typer.Option(envvar="FEATURE_ONE", help="Singular. Default: derived from the name.")] = "",
    scope: Annotated[
        str, typer.Option(envvar="FEATURE_SCOPE", help="For a feature of administrators instead of owners.")
    ] = "",
    *,
    public: Annotated[
        bool, typer.Option(envvar="FEATURE_PUBLIC", help="Everybody may read, and owners write.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(envvar="FEATURE_DRY", help="Only print the files.")] = False,
) -> None:
    """Write a feature with its migration and its tests."""
    planned = plan(guide.ROOT, name, fields, one, scope, is_public=public)
    if not planned:
        typer.echo(f"{name} exists exactly as it would be generated. Nothing to do.")
    elif dry_run:
        typer.echo("\n".join(planned.preview()))
    else:
        planned.write()
        _update_guide()
        typer.echo(f"Wrote the feature {name}, with the singular {planned.feature.one}:")
        for path in (*planned.created, *planned.changed):
            typer.echo(f"  {path}")


def _update_guide() -> None:
    """Let the migration of the guide follow the new one, like `make docs`. The other generated pages do not depend on a new feature."""
    page = guide.ROOT / guide.PATH
    if page.is_file():
        page.write_text(guide.text())


def program() -> None:
    """Run the command. A name that cannot be used is printed without a traceback, with exit code 2."""
    try:
        commands()
    except GeneratorError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)


if __name__ == "__main__":
    program()
