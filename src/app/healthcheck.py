"""`app healthcheck`: asks the server on this machine whether it is ready.

A container runs this every few seconds. So it imports little: it takes 0.1 s, and the settings alone would take 0.7 s.
"""

import http.client
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

# Seconds for the connection, and for each part of the response. `/readyz` waits up to two for the database.
_TIMEOUT = 5.0
_MAX_RESPONSE = 65_536
_PREFIX = "APP_SERVER__"
# A server that listens on all addresses is asked on the loopback address.
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # This opens no socket.
_LAST_PORT = 65_535


class UnhealthyError(Exception):
    """The server is not ready, or cannot be asked. The text says why."""


def run(environment: Mapping[str, str] = os.environ) -> Literal[0, 1]:
    """Print the result in one line, and return the exit code."""
    try:
        sys.stdout.write(f"{check_server(environment)}\n")
    except UnhealthyError as error:
        sys.stderr.write(f"app: {error}\n")
        return 1
    return 0


def check_server(environment: Mapping[str, str] = os.environ) -> str:
    """Return a sentence about the server that these settings describe, or raise `UnhealthyError`."""
    settings = _settings(environment)
    host, port = str(settings.get("HOST", "127.0.0.1")), _port(settings.get("PORT", 8000))
    host = _LOOPBACK.get(host, host)
    server = f"the server on port {port} of {host}"
    try:
        status, body = _ask(host, port)
    except TimeoutError:
        raise UnhealthyError(f"{server} did not answer within {_TIMEOUT:g} s") from None
    except OSError as error:
        raise UnhealthyError(f"{server} cannot be reached: {error.strerror or error}") from None
    except (http.client.HTTPException, ValueError, TypeError, RecursionError):
        raise UnhealthyError(
            f"{server} did not answer as this application does; another program may use the port"
        ) from None
    if status != http.client.OK or body.get("status") != "ok":
        raise UnhealthyError(f"{server} answered with status {status}: {_printable(body.get('detail'))}")
    return f"{server} is ready"


def _ask(host: str, port: int) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    try:
        # A server with a path in its public URL answers without the path too.
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = json.loads(response.read(_MAX_RESPONSE))
    finally:
        connection.close()
    if not isinstance(body, dict):
        raise TypeError("not an object")
    return response.status, cast("dict[str, Any]", body)


def _printable(detail: object) -> str:
    return "".join(character for character in str(detail)[:500] if character.isprintable())


def _port(value: object) -> int:
    port = int(str(value)) if str(value).strip().isdecimal() else -1
    if port == 0:
        raise UnhealthyError("the port is 0, so the server chose a free one; set PORT to a port that can be checked")
    if not 0 < port <= _LAST_PORT:
        raise UnhealthyError("PORT: write a number between 1 and 65535")
    return port


def _settings(environment: Mapping[str, str]) -> dict[str, object]:
    """Return the settings of the server, in the order of precedence of `app.core.config`: variables, `PORT`, files."""
    variables = {name.upper(): value for name, value in environment.items() if value}
    files = _files(environment.get("APP_SECRETS_DIR"))
    platform = {"PORT": variables["PORT"]} if "PORT" in variables else {}
    return {**_group(files), **platform, **_group(variables)}


def _group(values: Mapping[str, str]) -> dict[str, object]:
    """Return the settings of the server among these: of a JSON object for the whole group, and single ones."""
    try:
        whole = json.loads(values.get("APP_SERVER", "{}"))
    except ValueError:
        whole = None
    if not isinstance(whole, dict):
        raise UnhealthyError("APP_SERVER: write a JSON object")
    single = {name.removeprefix(_PREFIX): value for name, value in values.items() if name.startswith(_PREFIX)}
    return {**{name.upper(): value for name, value in whole.items()}, **single}


def _files(directory: str | None) -> dict[str, str]:
    paths = Path(directory).glob("[Aa][Pp][Pp]_[Ss][Ee][Rr][Vv][Ee][Rr]*") if directory else ()
    try:
        return {path.name.upper(): path.read_text().strip() for path in paths if path.is_file()}
    except (OSError, UnicodeDecodeError):
        raise UnhealthyError("APP_SECRETS_DIR: a file in it cannot be read as UTF-8 text") from None
