"""TLS to PostgreSQL. `sslmode` (or `ssl`) and the related URL parameters have the same meaning for both drivers.

By default, both drivers read files in the home directory. The service may not be able to read them, and they could silently
change the trusted certificates. So each driver gets every option explicitly.
"""

import os
import ssl
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import asyncpg

from app.core.config import DatabaseSettings
from app.core.errors import ConfigurationError

# No file can have this name, and libpq ignores missing files.
_NO_FILE = "/dev/null/none"
# Connection attempts in their order for each `sslmode`: True with TLS, False without.
_ATTEMPTS = {"disable": (False,), "allow": (False, True), "prefer": (True, False)}
_ONLY_TLS = (True,)
# Errors of a server that requires the other kind of connection. A timeout is not one: another attempt would take as long again.
_WRONG_KIND = (ConnectionError, ssl.SSLError, asyncpg.InvalidAuthorizationSpecificationError)


class Tls(NamedTuple):
    """The TLS parameters of the URL, with the same names."""

    sslmode: str
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None


def tls_of(options: Mapping[str, Any]) -> Tls:
    """Return the TLS parameters in a driver's options."""
    return Tls(**{name: options.get(name) for name in Tls._fields})  # type: ignore[arg-type]  # `sslmode` is always set.


async def connect(**options: Any) -> asyncpg.Connection:
    """Connect with the TLS mode of the URL. `prefer` and `allow` make a second attempt if the server rejects the first."""
    tls = tls_of(options)
    *first, last = _ATTEMPTS.get(tls.sslmode, _ONLY_TLS)
    # Without a password, the driver would look for one in the home directory.
    arguments = {"password": "", **{name: value for name, value in options.items() if name not in Tls._fields}}
    for with_tls in first:
        try:
            return await asyncpg.connect(**arguments, ssl=_context(tls) if with_tls else False)
        except asyncpg.InvalidPasswordError:
            raise
        except _WRONG_KIND:
            pass
    return await asyncpg.connect(**arguments, ssl=_context(tls) if last else False)


def check(settings: DatabaseSettings) -> None:
    """Raise a `ConfigurationError` if a certificate of the settings cannot be used."""
    for url in settings.sqlalchemy_urls().values():
        _context(tls_of(url.query))


@lru_cache
def _context(tls: Tls) -> ssl.SSLContext:
    """Create the context. It is cached, because it takes tens of milliseconds to read the system's certificates."""
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
            # With an empty password, an encrypted key is an error instead of a prompt.
            context.load_cert_chain(tls.sslcert, tls.sslkey, password="")
    except OSError as error:
        raise ConfigurationError(
            f"DATABASE_URL: certificates cannot be used ({', '.join(filter(None, tls[1:]))}): {error.strerror or error}"
        ) from error
    return context


def for_libpq(options: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the same options for libpq, which disable every file in the home directory."""
    tls = tls_of(options)
    is_system = tls.sslmode == "verify-full" and tls.sslrootcert in {None, "system"}
    if is_system:
        _set_system_certificates()
    return {
        "sslmode": tls.sslmode,
        "sslrootcert": "system" if is_system else tls.sslrootcert or _NO_FILE,
        "sslcert": tls.sslcert or _NO_FILE,
        "sslkey": tls.sslkey,
        "sslcrl": _NO_FILE,
        "passfile": _NO_FILE,
        # Otherwise libpq would try a Kerberos ticket before TLS.
        "gssencmode": "disable",
    }


def _set_system_certificates() -> None:
    """Tell libpq where the system's certificates are. psycopg's wheel contains an OpenSSL that does not know this path."""
    paths = ssl.get_default_verify_paths()
    for variable, path in (("SSL_CERT_FILE", paths.cafile), ("SSL_CERT_DIR", paths.capath)):
        if path:
            os.environ.setdefault(variable, path)
