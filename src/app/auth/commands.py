"""`app sessions …` and `app keys …`."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from app import features
from app.auth.sessions.cutoff import end_every_session
from app.auth.settings import AuthSettings
from app.core.commands import command_group, in_transaction, with_database
from app.core.db.database import WriteSession
from app.core.security import resealing, rotation
from app.core.security.keys import generate_key_set, is_seal_key, seal_number
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
    file: Annotated[
        Path,
        typer.Argument(
            help="File to create. It must not exist. Keep it secret, and back it up. `-` writes to the standard output."
        ),
    ],
    algorithm: Annotated[
        Literal["ES256", "EdDSA"], typer.Option(help="Signature algorithm of access tokens.")
    ] = "ES256",
) -> None:
    """Create a private key set: a signing key for access tokens, a pepper for all other tokens, a seal key for secrets."""
    if str(file) == "-":
        typer.echo(generate_key_set(algorithm))
        return
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
    """Make the next key active. Tokens made with this key stay valid, and `app worker` reseals what it has sealed."""
    with rotation.changing(load_settings().of(AuthSettings)) as stored:
        successor = rotation.retire(stored, kid, force=force)
    until = "`app worker` has resealed its rows" if is_seal_key(successor) else "all tokens made with it have expired"
    typer.echo(f"{successor['kid']} is now active. {kid} is retiring. Remove it when {until}.")


@keys.command("remove")
def remove_key(
    kid: Annotated[str, typer.Argument(help="Id of a key that is not active.")],
    force: Annotated[bool, typer.Option("--force", help="Remove it even if tokens made with it may be valid.")] = False,
    lose_rows: Annotated[
        int,
        typer.Option("--lose-rows", metavar="N", help="Remove a seal key even if N rows that it has sealed are lost."),
    ] = 0,
) -> None:
    """Remove a key. Every token made with it becomes invalid. A seal key must have no rows any more."""
    settings = load_settings()
    auth = settings.of(AuthSettings)
    # A refresh moves a login session to the active pepper.
    lifetime = max(auth.refresh_idle_ttl, *LINK_LIFETIMES.values())
    with rotation.changing(auth) as stored:
        removed = rotation.remove(stored, kid, refresh_token_lifetime=lifetime, force=force)
        if is_seal_key(removed):
            _refuse_loss(kid, in_transaction(settings.database, partial(_sealed_rows, kid)), lose_rows)
        elif lose_rows:
            raise rotation.KeyChangeError(f"{kid} is no seal key and has no rows; leave --lose-rows out")
    typer.echo(f"Removed {kid}.")


async def _sealed_rows(kid: str, session: WriteSession) -> dict[str, int]:
    number = seal_number(kid)
    return {sealed.name: await resealing.count(session, sealed, number) for sealed in features.sealed_columns()}


def _refuse_loss(kid: str, rows: Mapping[str, int], lose_rows: int) -> None:
    total = sum(rows.values())
    if total == lose_rows:
        return
    if not total:
        raise rotation.KeyChangeError(f"no row is sealed with {kid}; leave --lose-rows out")
    places = ", ".join(f"{count} in {column}" for column, count in rows.items() if count)
    raise rotation.KeyChangeError(
        f"{kid} still seals rows, which could never be read again: {places}; wait until `app worker` has resealed them, "
        f"ten minutes after `retire`, or lose them with --lose-rows {total}"
    )
