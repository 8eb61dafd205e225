"""TLS to PostgreSQL: what `sslmode` (or `ssl`) and its companions in the URL mean, the same for both drivers.

Both drivers look into the home directory by default. That directory may be closed to the service, and its files would change
silently who is trusted. So each driver is given everything.
"""

import os
import ssl
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import asyncpg

from app.core.config import DatabaseSettings
from app.core.errors import ConfigurationError

# No file can have this name: libpq goes on without it.
_NO_FILE = "/dev/null/none"
# How to connect, one way after the other: with TLS or without.
_WAYS = {"disable": (False,), "allow": (False, True), "prefer": (True, False)}
_ONLY_TLS = (True,)
# A server that wants the other way. A silent one is none: another attempt would take as long again.
_WRONG_WAY = (ConnectionError, ssl.SSLError, asyncpg.InvalidAuthorizationSpecificationError)


class Tls(NamedTuple):
    """What the URL says, under its names there."""

    sslmode: str
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None


def tls_of(options: Mapping[str, Any]) -> Tls:
    """Read the parameters of TLS from a driver's options."""
    return Tls(**{name: options.get(name) for name in Tls._fields})  # type: ignore[arg-type]  # `sslmode` is always there.


async def connect(**options: Any) -> asyncpg.Connection:
    """Connect as the URL says. `prefer` and `allow` try the other way when the server refuses the first."""
    tls = tls_of(options)
    *others, last = _WAYS.get(tls.sslmode, _ONLY_TLS)
    # Without a password the driver would look for one in the home directory.
    given = {"password": "", **{name: value for name, value in options.items() if name not in Tls._fields}}
    for way in others:
        try:
            return await asyncpg.connect(**given, ssl=_context(tls) if way else False)
        except asyncpg.InvalidPasswordError:
            raise
        except _WRONG_WAY:
            pass
    return await asyncpg.connect(**given, ssl=_context(tls) if last else False)


def check(settings: DatabaseSettings) -> None:
    """Raise a `ConfigurationError` when certificates that the settings name cannot be used."""
    for url in (settings.sqlalchemy_url(), settings.direct_sqlalchemy_url()):
        _context(tls_of(url.query))


@lru_cache
def _context(tls: Tls) -> ssl.SSLContext:
    """Make the context once: reading the system's certificates takes tens of milliseconds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["postgresql"])
    context.check_hostname = tls.sslmode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if tls.sslmode == "verify-full" or tls.sslrootcert else ssl.CERT_NONE
    try:
        if tls.sslrootcert not in {None, "system"}:
            context.load_verify_locations(tls.sslrootcert)
        elif context.verify_mode:
            context.load_default_certs()
        if tls.sslcert:
            # An encrypted key is an error: nobody is there to be asked for its password.
            context.load_cert_chain(tls.sslcert, tls.sslkey, password="")
    except OSError as error:
        message = (
            f"DATABASE_URL: certificates cannot be used ({', '.join(filter(None, tls[1:]))}): {error.strerror or error}"
        )
        raise ConfigurationError(message) from error
    return context


def for_libpq(options: Mapping[str, Any]) -> dict[str, str | None]:
    """Give libpq the same, and no file of the home directory."""
    tls = tls_of(options)
    is_system = tls.sslmode == "verify-full" and tls.sslrootcert in {None, "system"}
    if is_system:
        _show_system_certificates()
    return {
        "sslmode": tls.sslmode,
        "sslrootcert": "system" if is_system else tls.sslrootcert or _NO_FILE,
        "sslcert": tls.sslcert or _NO_FILE,
        "sslkey": tls.sslkey,
        "sslcrl": _NO_FILE,
        "passfile": _NO_FILE,
        # A ticket of Kerberos would be tried before TLS.
        "gssencmode": "disable",
    }


def _show_system_certificates() -> None:
    """Psycopg's wheel brings an OpenSSL of its own, which does not know where this system keeps its certificates."""
    paths = ssl.get_default_verify_paths()
    for variable, path in (("SSL_CERT_FILE", paths.cafile), ("SSL_CERT_DIR", paths.capath)):
        if path:
            os.environ.setdefault(variable, path)
