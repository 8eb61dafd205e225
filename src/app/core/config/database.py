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
# `app.core.db.tls` reads the parameters about TLS, the driver the others.
_URL_PARAMETERS = {"sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port", "target_session_attrs"}
_UNVERIFIED_MODES = ("disable", "allow", "prefer")
_TLS_MODES = (*_UNVERIFIED_MODES, "require", "verify-ca", "verify-full")


class DatabaseSettings(SettingsGroup):
    """PostgreSQL, 15 or newer."""

    url: SecretStr = Field(
        description="`postgresql://user:password@host:5432/name`; `DATABASE_URL` works too. TLS: append `?ssl=verify-full`. "
        "`sslmode`, `sslrootcert`, `sslcert` and `sslkey` mean what they mean to libpq."
    )
    direct_url: SecretStr | None = Field(
        default=None,
        description="The same database without a transaction pooler in between, for what needs a session of its own: the "
        "listener of revocations, workers and, behind a pooler, migrations. Unset: the URL above.",
    )
    transaction_pooler: bool = Field(
        default=False,
        description="The URL leads to a transaction pooler such as PgBouncer: nothing is kept in a session, every transaction "
        "brings its limits. Set the direct URL too.",
    )
    require_tls: bool = Field(
        default=True, description="In production, refuse a URL without TLS. Turn off only on a trusted network."
    )
    ca_file: Path | None = Field(
        default=None,
        description="Certificates (PEM) to trust instead of the system's, for a server with a private one; `sslrootcert` in the URL "
        "wins. A file that is replaced is read at the next start.",
    )
    pool_size: int = Field(
        default=10,
        ge=1,
        le=500,
        description="Connections kept for writing, and as many again for reading, per process.",
    )
    pool_wait: Duration = Field(
        default=timedelta(seconds=2), description="Longest wait for a free connection, then 503."
    )
    pool_recycle: Duration = Field(default=timedelta(minutes=30), description="Age at which a connection is replaced.")
    connect_timeout: Duration = Field(
        default=timedelta(seconds=2), description="Longest wait for a new connection, then 503."
    )
    statement_timeout: Timeout = Field(
        default=timedelta(seconds=5),
        description="Longest time for one statement; the server cancels it, the client gives up 1 s later.",
    )
    lock_timeout: Timeout = Field(default=timedelta(seconds=2), description="Longest wait for a lock.")
    idle_in_transaction_timeout: Timeout = Field(
        default=timedelta(seconds=10),
        description="PostgreSQL ends a session that idles this long inside a transaction.",
    )
    accept_newer_schema: bool = Field(
        default=False,
        description="Be ready on a schema that this program has never heard of, to start the release before: when rolling it "
        "back, or when scaling while the next one arrives.",
    )
    application_name: str = Field(default=product.SLUG, max_length=40, description="Name shown in `pg_stat_activity`.")
    migration_lock_timeout: Timeout = Field(
        default=timedelta(milliseconds=100),
        description="Longest wait of a migration for a lock, in which everybody else waits behind it; then it lets them pass and "
        "tries again a second later, for a minute.",
    )
    migration_statement_timeout: Timeout = Field(
        default=timedelta(minutes=10), description="Longest time for one statement of a migration."
    )

    @field_validator("url", "direct_url")
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
            refuse(f"the driver does not know the parameter {unknown[0]}; take it out")
        _refuse_bad_tls(query)
        url = url.set(drivername="postgresql+asyncpg", query=query)
        return SecretStr(url.render_as_string(hide_password=False))

    @model_validator(mode="after")
    def _check_certificates(self) -> Self:
        for url in (self.sqlalchemy_url(), self.direct_sqlalchemy_url()):
            mode, certificates = url.query["sslmode"], url.query.get("sslrootcert")
            if certificates and mode in _UNVERIFIED_MODES:
                refuse(f"certificates are given, but ssl={mode} does not check any; append ?ssl=verify-full")
            if mode == "verify-ca" and certificates in {None, "system"}:
                refuse(
                    "ssl=verify-ca needs certificates of your own: set APP_DATABASE__CA_FILE, or take ssl=verify-full"
                )
        return self

    @property
    def limits(self) -> dict[str, timedelta]:
        """What PostgreSQL itself ends in a session of the application, by the names it knows."""
        return {
            "statement_timeout": self.statement_timeout,
            "lock_timeout": self.lock_timeout,
            "idle_in_transaction_session_timeout": self.idle_in_transaction_timeout,
        }

    def sqlalchemy_url(self) -> URL:
        """Give the URL with its password, for an engine only."""
        return self._completed(self.url)

    def direct_sqlalchemy_url(self) -> URL:
        """Give the URL that no transaction pooler stands in front of."""
        return self._completed(self.direct_url or self.url)

    @override
    def unsafe_in_production(self) -> Iterator[str]:
        password = self.sqlalchemy_url().password
        if password is not None and password.lower() in _PLACEHOLDERS:
            yield "DATABASE_URL: the password is a placeholder"
        urls = {"DATABASE_URL": self.sqlalchemy_url()}
        if self.direct_url:
            urls["APP_DATABASE__DIRECT_URL"] = self.direct_sqlalchemy_url()
        for name, url in urls.items():
            if self.require_tls and url.query["sslmode"] in _UNVERIFIED_MODES:
                yield (
                    f"{name}: append ?ssl=verify-full (or require, verify-ca), or set APP_DATABASE__REQUIRE_TLS=false on a "
                    "trusted network"
                )

    def _completed(self, secret: SecretStr) -> URL:
        """Name what the URL leaves out, so that no driver has a default of its own."""
        url = make_url(secret.get_secret_value())
        # A standby takes no writes, and does not know what was revoked a moment ago. Loopback is private: TLS costs time there.
        defaults = {
            "target_session_attrs": "primary",
            "sslmode": "allow" if url.host and is_loopback(url.host) else "prefer",
            **({"sslrootcert": str(self.ca_file)} if self.ca_file else {}),
        }
        return url.set(query={**defaults, **url.query})


def _refuse_bad_tls(query: Mapping[str, object]) -> None:
    if twice := [name for name in query if name.startswith("ssl") and not isinstance(query[name], str)]:
        refuse(f"it has {twice[0]} more than once")
    if (mode := query.get("sslmode", _TLS_MODES[0])) not in _TLS_MODES:
        refuse(f"ssl is one of {', '.join(_TLS_MODES)}")
    if query.get("sslrootcert") == "system" and mode != "verify-full":
        refuse("sslrootcert=system needs ssl=verify-full: anybody can have a certificate for another name")
    if ("sslcert" in query) != ("sslkey" in query):
        refuse("sslcert and sslkey belong together")
