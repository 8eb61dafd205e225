"""Settings of the database connection."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Self, override

from pydantic import Field, SecretStr, field_validator, model_validator
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.core import product
from app.core.config.groups import Duration, SettingsGroup, Timeout, is_loopback, refuse

_PLACEHOLDERS = {"changeme", "changethis", "password", "postgres", "secret", "example"}
# `app.core.db.tls` reads the TLS parameters. The driver reads the others.
_URL_PARAMETERS = {"sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port", "target_session_attrs"}
_UNVERIFIED_MODES = ("disable", "allow", "prefer")
_TLS_MODES = (*_UNVERIFIED_MODES, "require", "verify-ca", "verify-full")


class DatabaseSettings(SettingsGroup):
    """PostgreSQL, 15 or newer."""

    url: SecretStr
    """`postgresql://user:password@host:5432/name`. `DATABASE_URL` works too. For TLS, append `?ssl=verify-full`.
    `sslmode`, `sslrootcert`, `sslcert` and `sslkey` have the same meaning as in libpq."""
    direct_url: SecretStr | None = None
    """URL of the same database that bypasses the transaction pooler. Used where a session of its own is needed: the
    revocation listener, workers and, behind a pooler, migrations. Unset: the URL above."""
    read_url: SecretStr | None = None
    """URL of a standby of the same database. GET operations read from it what they show, once it has everything that was
    committed before the read; otherwise they read from the primary. Unset: all reads use the primary."""
    read_max_lag: Timeout = timedelta(milliseconds=100)
    """Maximum wait of a read until the standby has applied the latest commit. After that, reads use the primary, until the
    standby has caught up."""
    transaction_pooler: bool = False
    """Set to `true` if the URL points to a transaction pooler such as PgBouncer. The application then keeps no state in
    a database session and sets the timeouts in each transaction. Set the direct URL too."""
    require_tls: bool = True
    """Refuse a URL without TLS in production. Turn it off only on a trusted network."""
    ca_file: Path | None = None
    """File of CA certificates (PEM) to trust instead of those of the system, for a private CA. `sslrootcert` in the URL
    takes precedence. A changed file takes effect at the next start."""
    pool_size: int = Field(default=10, ge=1, le=500)
    """Maximum number of connections in each pool. Each process has two pools, one for writes and one for reads."""
    pool_wait: Duration = timedelta(seconds=2)
    """Maximum wait for a connection of the pool. The response is then 503."""
    pool_recycle: Duration = timedelta(minutes=30)
    """Age after which a connection is replaced."""
    connect_timeout: Duration = timedelta(seconds=2)
    """Maximum wait for a new connection. The response is then 503."""
    statement_timeout: Timeout = timedelta(seconds=5)
    """Maximum time of one statement. PostgreSQL then cancels it. If it does not, the client gives up 1 s later.
    An operation or a job may declare another time."""
    lock_timeout: Timeout = timedelta(seconds=2)
    """Maximum wait of a statement for a lock."""
    idle_in_transaction_timeout: Timeout = timedelta(seconds=10)
    """Maximum idle time of a session inside a transaction. PostgreSQL then ends the session."""
    accept_newer_schema: bool = False
    """Report ready even if the schema has migrations that this release does not know. Needed to start the previous
    release: for a rollback, or to scale it during a deployment."""
    application_name: str = Field(default=product.SLUG, max_length=40)
    """Name of the sessions in `pg_stat_activity`."""
    migration_lock_timeout: Timeout = timedelta(milliseconds=100)
    """Maximum wait of a migration for a lock. Other statements queue behind this wait, so the migration gives up and
    retries after one second, for one minute."""
    migration_statement_timeout: Timeout = timedelta(minutes=10)
    """Maximum time of one statement of a migration."""

    @field_validator("url", "direct_url", "read_url")
    @classmethod
    def _check_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            url = make_url(value.get_secret_value())
        except (ArgumentError, ValueError):
            url = None
        if url is None or url.get_backend_name() not in {"postgresql", "postgres"} or not url.database:
            refuse("write it as postgresql://user:password@host:5432/database")
        query = {("sslmode" if key == "ssl" else key): text for key, text in url.query.items()}
        if unknown := sorted(query.keys() - _URL_PARAMETERS):
            refuse(f"the driver does not know the parameter {unknown[0]}; remove it")
        _refuse_bad_tls(query)
        url = url.set(drivername="postgresql+asyncpg", query=query)
        return SecretStr(url.render_as_string(hide_password=False))

    @model_validator(mode="after")
    def _check_certificates(self) -> Self:
        for url in self.sqlalchemy_urls().values():
            mode, certificates = url.query["sslmode"], url.query.get("sslrootcert")
            if certificates and mode in _UNVERIFIED_MODES:
                refuse(f"certificates are set, but ssl={mode} does not check them; append ?ssl=verify-full")
            if mode == "verify-ca" and certificates in {None, "system"}:
                refuse(
                    "ssl=verify-ca needs certificates of your own: set APP_DATABASE__CA_FILE, or use ssl=verify-full"
                )
        return self

    @model_validator(mode="after")
    def _check_read_url(self) -> Self:
        if self.read_url and self.transaction_pooler and not self.direct_url:
            refuse("APP_DATABASE__READ_URL with a transaction pooler needs APP_DATABASE__DIRECT_URL too; set it")
        return self

    @property
    def limits(self) -> dict[str, timedelta]:
        """The timeouts that PostgreSQL enforces in each session, by the names of its own settings."""
        return {
            "statement_timeout": self.statement_timeout,
            "lock_timeout": self.lock_timeout,
            "idle_in_transaction_session_timeout": self.idle_in_transaction_timeout,
        }

    def sqlalchemy_url(self) -> URL:
        """Return the URL for an engine. It contains the password."""
        return self._completed(self.url)

    def direct_sqlalchemy_url(self) -> URL:
        """Return the URL that bypasses a transaction pooler. It contains the password."""
        return self._completed(self.direct_url or self.url)

    def read_sqlalchemy_url(self) -> URL | None:
        """Return the URL of the standby, or None if there is none. It contains the password."""
        return self._completed(self.read_url, target="standby") if self.read_url else None

    def sqlalchemy_urls(self) -> Mapping[str, URL]:
        """Return every URL that is set, by the name of its variable. They contain the passwords."""
        direct = self.direct_sqlalchemy_url() if self.direct_url else None
        found = {
            "DATABASE_URL": self.sqlalchemy_url(),
            "APP_DATABASE__DIRECT_URL": direct,
            "APP_DATABASE__READ_URL": self.read_sqlalchemy_url(),
        }
        return {name: url for name, url in found.items() if url is not None}

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        password = self.sqlalchemy_url().password
        if password is not None and password.lower() in _PLACEHOLDERS:
            yield "DATABASE_URL: the password is a placeholder"
        for name, url in self.sqlalchemy_urls().items():
            if self.require_tls and url.query["sslmode"] in _UNVERIFIED_MODES:
                yield (
                    f"{name}: append ?ssl=verify-full (or require, verify-ca), or set APP_DATABASE__REQUIRE_TLS=false on a "
                    "trusted network"
                )

    def _completed(self, secret: SecretStr, *, target: str = "primary") -> URL:
        """Add the parameters that the URL omits, so that the defaults of the drivers do not apply."""
        url = make_url(secret.get_secret_value())
        # By default no standby: it accepts no writes, and may lack the latest revocations. Loopback is private, so TLS would only
        # cost time.
        defaults = {
            "target_session_attrs": target,
            "sslmode": "allow" if url.host and is_loopback(url.host) else "prefer",
            **({"sslrootcert": str(self.ca_file)} if self.ca_file else {}),
        }
        return url.set(query={**defaults, **url.query})


def _refuse_bad_tls(query: Mapping[str, object]) -> None:
    if twice := [name for name in query if name.startswith("ssl") and not isinstance(query[name], str)]:
        refuse(f"it has {twice[0]} more than once; keep one")
    if (mode := query.get("sslmode", _TLS_MODES[0])) not in _TLS_MODES:
        refuse(f"ssl must be one of {', '.join(_TLS_MODES)}")
    if query.get("sslrootcert") == "system" and mode != "verify-full":
        refuse("sslrootcert=system needs ssl=verify-full: a public CA issues a certificate to any owner of a host name")
    if ("sslcert" in query) != ("sslkey" in query):
        refuse("set sslcert and sslkey together")
