"""`app sessions …` and `app keys …`."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.auth.sessions.cutoff import end_every_session
from app.auth.settings import AuthSettings
from app.core.commands import command_group, with_database
from app.core.security import rotation
from app.core.security.keys import generate_key_set
from app.settings import load_settings
from app.users.links import LIFETIMES as LINK_LIFETIMES

sessions = command_group("sessions", "Login sessions.")
keys = command_group("keys", "Signing keys.")
COMMANDS = (sessions, keys)


@sessions.command("revoke-all")
def revoke_all_sessions(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """End all login sessions. All tokens issued until now become invalid. Users can log in again."""
    settings = load_settings()
    if not yes:
        typer.confirm("All users have to log in again. Continue?", abort=True)
    ended = with_database(settings.database, end_every_session)
    typer.echo(f"Ended {ended} login session{'' if ended == 1 else 's'}.")


@keys.command("generate")
def generate_keys(
    file: Annotated[Path, typer.Argument(help="File to create. It must not exist. Keep it secret, and back it up.")],
    algorithm: Annotated[
        Literal["ES256", "EdDSA"], typer.Option(help="Signature algorithm of access tokens.")
    ] = "ES256",
) -> None:
    """Create a private key set: a signing key for access tokens, and a pepper for all other tokens."""
    # O_EXCL: an existing key is not overwritten. Mode 0600: other users cannot read the file at any time.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as output:
        output.write(generate_key_set(algorithm))
    typer.echo(f"Wrote {file}; set APP_AUTH__SIGNING_KEYS_FILE to it.")


@keys.command("list")
def list_keys() -> None:
    """List the keys with their state: next, active or retiring."""
    typer.echo("\n".join(str(key) for key in rotation.list_keys(load_settings().of(AuthSettings))))


@keys.command("add")
def add_key(
    kind: Annotated[Literal["signing", "pepper", "seal"], typer.Argument(help="Kind of the key.")],
    algorithm: Annotated[
        Literal["ES256", "EdDSA"] | None, typer.Option(help="Algorithm of a signing key.  [default: ES256]")
    ] = None,
) -> None:
    """Add the next key. `app keys retire` makes it the active one."""
    if kind != "signing" and algorithm:
        raise typer.BadParameter("only a signing key has an algorithm; leave --algorithm out")
    with rotation.changing(load_settings().of(AuthSettings)) as stored:
        added = rotation.add(stored, kind, algorithm or "ES256")
    ready = datetime.now(UTC) + rotation.LEAD[kind]
    is_active = added["state"] == "active"
    state = "is active" if is_active else f"can become the active key at {ready:%Y-%m-%d %H:%M}Z"
    typer.echo(f"Added {added['kid']}. It {state}.")


@keys.command("retire")
def retire_key(
    kid: Annotated[str, typer.Argument(help="Id of the active key, as `app keys list` shows it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Retire it even if some processes may not have read the next key yet.")
    ] = False,
) -> None:
    """Make the next key active. Tokens made with this key stay valid."""
    with rotation.changing(load_settings().of(AuthSettings)) as stored:
        successor = rotation.retire(stored, kid, force=force)
    typer.echo(f"{successor} is now active. {kid} is retiring. Remove it when all tokens made with it have expired.")


@keys.command("remove")
def remove_key(
    kid: Annotated[str, typer.Argument(help="Id of a key that is not active.")],
    force: Annotated[bool, typer.Option("--force", help="Remove it even if tokens made with it may be valid.")] = False,
) -> None:
    """Remove a key. Every token made with it becomes invalid."""
    auth = load_settings().of(AuthSettings)
    # A refresh moves a login session to the active pepper.
    lifetime = max(auth.refresh_idle_ttl, *LINK_LIFETIMES.values())
    with rotation.changing(auth) as stored:
        rotation.remove(stored, kid, refresh_token_lifetime=lifetime, force=force)
    typer.echo(f"Removed {kid}.")
