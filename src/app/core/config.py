"""Every knob of the system on one page.

Each setting is an environment variable: `APP_`, the group, two underscores, the name (`APP_AUTH__ISSUER`).
`DATABASE_URL` and `PORT` are understood as well, and any setting may instead be a file of that name in
`APP_SECRETS_DIR`. No instance is made here: `load_settings()` builds one, and each part receives its group.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, override
from urllib.parse import urlsplit

from pydantic import (
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.core import product
from app.core.environment import forget_libpq, kubernetes_variables, usable_cores
from app.core.errors import ConfigurationError

PREFIX = "APP_"
SECRETS_DIR = "APP_SECRETS_DIR"
_MIN_PRODUCTION_BCRYPT_COST = 10
_MAX_HASH_THREADS = 64
_PLACEHOLDERS = {"changeme", "changethis", "password", "postgres", "secret", "example"}
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|)")
_ORIGIN = re.compile(r"\*|https?://[^\s/?#@,]+")
# Parameters that a URL of the database may have. `app.core.db.tls` knows those about TLS, the driver the others.
_URL_PARAMETERS = {"sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port", "target_session_attrs"}
_UNVERIFIED_MODES = ("disable", "allow", "prefer")
_TLS_MODES = (*_UNVERIFIED_MODES, "require", "verify-ca", "verify-full")
# The names that platforms set; the long ones win over them.
_SAFE_URL = "postgresql://user@host/name?ssl=verify-full"
_PLAIN_NAMES = {"APP_DATABASE__URL": "DATABASE_URL", "APP_SERVER__PORT": "PORT"}


def _parse_duration(value: object) -> object:
    try:
        if isinstance(value, int | float):
            return timedelta(seconds=value)
        if not isinstance(value, str):
            return value
        match = _DURATION.fullmatch(value.strip())
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]]) if match else _refuse(_DURATION_FORM)
    except OverflowError:
        return _refuse(_DURATION_FORM)


def _parse_origins(value: object) -> object:
    origins = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
    if isinstance(origins, tuple | list) and not all(_ORIGIN.fullmatch(str(origin)) for origin in origins):
        _refuse("write origins as https://host, separated by commas")
    return origins


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


_DURATION_FORM = "write a duration as seconds or with a unit: 90, 500ms, 30s, 10m, 24h, 14d"
Duration = Annotated[timedelta, BeforeValidator(_parse_duration), Field(gt=timedelta(0))]
# PostgreSQL counts milliseconds in 32 bits, and takes 0 for "no limit".
Timeout = Annotated[Duration, Field(ge=timedelta(milliseconds=1), le=timedelta(days=24))]


# No quoting, no comments, no name: what a header and an envelope hold in the same spelling.
_MAILBOX = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*"
)


Pause = Annotated[timedelta, BeforeValidator(_parse_duration), Field(ge=timedelta(0))]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(_Group):
    """The HTTP server."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; `PORT` works too. 0 takes any free one."
    )
    public_url: AnyHttpUrl | None = Field(
        default=None,
        description="Where clients reach this service, never taken from a request. Unset: `http://127.0.0.1:$PORT`; "
        "production wants an `https://` address.",
    )
    docs: bool | None = Field(
        default=None, description="Serve `/docs` and `/openapi.json`. Unset: everywhere but in production."
    )
    max_body_size: int = Field(default=1_048_576, ge=1024, description="Largest request body, in bytes.")
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_origins)] = Field(
        default=(),
        description="Origins of browser applications that may call this API, separated by commas: "
        "`https://app.example.com,https://admin.example.com`.",
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(),
        description='Networks of the proxies in front, as JSON: `["10.0.0.0/8"]`. Only from these is `X-Forwarded-For` believed. '
        "Without it, the limits on wrong logins take everybody behind a proxy for one client.",
    )
    workers: int = Field(
        default=1, ge=1, le=128, description="Processes that share the port; `app serve --workers` wins over it."
    )
    drain_delay: Pause | None = Field(
        default=None,
        description="How long SIGTERM leaves the server open: `/readyz` fails and each answer ends its connection, so that whoever "
        "directs traffic here can notice. Unset: 5s in production, none elsewhere.",
    )
    shutdown_grace: Duration = Field(
        default=timedelta(seconds=15),
        description="How long running requests may take to finish once nothing new is accepted; then they get 503.",
    )
    max_connections: int = Field(
        default=4096,
        ge=16,
        le=1_000_000,
        description="Connections that a process may have. One more closes one that waits for a request, or is refused.",
    )
    header_timeout: Duration = Field(
        default=timedelta(seconds=10),
        description="Longest time for the head of a request, also for the first on a new connection to begin.",
    )
    body_timeout: Duration = Field(
        default=timedelta(seconds=30), description="Longest time for a body to arrive, from the end of the head."
    )
    read_timeout: Duration = Field(default=timedelta(seconds=10), description="Longest silence while a body arrives.")
    write_timeout: Duration = Field(
        default=timedelta(seconds=30), description="How long a client may leave an answer unread that waits to be sent."
    )
    keep_alive: Duration = Field(
        default=timedelta(seconds=75),
        description="How long a connection may wait for its next request. Let it be longer than what the proxy in front has.",
    )


class DatabaseSettings(_Group):
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
    def _name_the_driver(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            url = make_url(value.get_secret_value())
        except (ArgumentError, ValueError):
            url = None
        if url is None or url.get_backend_name() not in {"postgresql", "postgres"} or not url.database:
            _refuse("write it as postgresql://user:password@host:5432/database")
        query = {("sslmode" if key == "ssl" else key): text for key, text in url.query.items()}
        if unknown := sorted(query.keys() - _URL_PARAMETERS):
            _refuse(f"the driver does not know the parameter {unknown[0]}; take it out")
        _refuse_bad_tls(query)
        url = url.set(drivername="postgresql+asyncpg", query=query)
        return SecretStr(url.render_as_string(hide_password=False))

    @model_validator(mode="after")
    def _know_whom_to_trust(self) -> Self:
        for url in (self.sqlalchemy_url(), self.direct_sqlalchemy_url()):
            mode, certificates = url.query["sslmode"], url.query.get("sslrootcert")
            if certificates and mode in _UNVERIFIED_MODES:
                _refuse(f"certificates are given, but ssl={mode} does not check any; append ?ssl=verify-full")
            if mode == "verify-ca" and certificates in {None, "system"}:
                _refuse(
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

    def _completed(self, secret: SecretStr) -> URL:
        """Name what the URL leaves out, so that no driver has a default of its own."""
        url = make_url(secret.get_secret_value())
        # A standby takes no writes, and does not know what was revoked a moment ago. Loopback is private: TLS costs time there.
        defaults = {
            "target_session_attrs": "primary",
            "sslmode": "allow" if url.host and _is_loopback(url.host) else "prefer",
            **({"sslrootcert": str(self.ca_file)} if self.ca_file else {}),
        }
        return url.set(query={**defaults, **url.query})


def _refuse_bad_tls(query: Mapping[str, object]) -> None:
    if twice := [name for name in query if name.startswith("ssl") and not isinstance(query[name], str)]:
        _refuse(f"it has {twice[0]} more than once")
    if (mode := query.get("sslmode", _TLS_MODES[0])) not in _TLS_MODES:
        _refuse(f"ssl is one of {', '.join(_TLS_MODES)}")
    if query.get("sslrootcert") == "system" and mode != "verify-full":
        _refuse("sslrootcert=system needs ssl=verify-full: anybody can have a certificate for another name")
    if ("sslcert" in query) != ("sslkey" in query):
        _refuse("sslcert and sslkey belong together")


class AuthSettings(_Group):
    """Login, tokens, passwords."""

    issuer: str | None = Field(
        default=None, max_length=255, description="`iss` of access tokens. Unset: the public URL."
    )
    audience: str = Field(default=product.SLUG, min_length=1, max_length=255, description="`aud` of access tokens.")
    signing_keys: SecretStr | None = Field(
        default=None, description="Private keys for access tokens as a JSON Web Key set, made by `app keys generate`."
    )
    signing_keys_file: Path | None = Field(default=None, description="The same from a file.")
    access_token_ttl: Duration = Field(
        default=timedelta(minutes=10),
        le=timedelta(minutes=15),
        description="Lifetime of an access token, 15 minutes at most.",
    )
    registration: Literal["open", "invite"] = Field(
        default="open", description="Who may make an account: anybody, or administrators alone (register is then 404)."
    )
    refresh_idle_ttl: Duration = Field(
        default=timedelta(days=14), description="A login session not refreshed for this long ends."
    )
    refresh_absolute_ttl: Duration = Field(
        default=timedelta(days=90), description="A login session ends this long after the login, used or not."
    )
    refresh_reuse_grace: Pause = Field(
        default=timedelta(seconds=30),
        description="How long a refresh token that has been used gives the same successor again (tabs, lost answers). "
        "0 is strict: any second use ends the session.",
    )
    sessions_per_user: int = Field(
        default=25,
        ge=1,
        le=1000,
        description="Live login sessions of one account; beyond that the one idle longest ends.",
    )
    access_check: Literal["memory", "database"] = Field(
        default="memory",
        description="How a request learns that its token is revoked: from memory, fed by PostgreSQL, or by asking each time.",
    )
    require_verified_email: bool = Field(
        default=True,
        description="Refuse to log in an account whose address is not verified (403 `email_not_verified`).",
    )
    password_hash: Literal["bcrypt", "argon2id"] = Field(
        default="bcrypt", description="Scheme of new hashes: bcrypt over an HMAC-SHA-256 pre-hash, or argon2id."
    )
    bcrypt_cost: int = Field(default=12, ge=4, le=16, description="Work factor of bcrypt: one more doubles the time.")
    password_min_length: int = Field(default=15, ge=8, le=64, description="Shortest password, in code points.")
    breached_passwords_file: Path | None = Field(
        default=None,
        description="Passwords known from breaches, which nobody may choose: the one sorted file that the downloader of Pwned "
        "Passwords writes (`SHA1:COUNT` lines). It is searched, not loaded.",
    )
    hash_threads: int = Field(
        default=min(_MAX_HASH_THREADS, usable_cores()),
        ge=1,
        le=_MAX_HASH_THREADS,
        description="Passwords hashed at once. Default: the cores that the process may use, 64 at most.",
    )
    hash_queue: int = Field(
        default=32, ge=0, le=10_000, description="Passwords that may wait for a thread; beyond that the answer is 503."
    )


class MailSettings(_Group):
    """How mail leaves."""

    url: SecretStr = Field(
        default=SecretStr("console:"),
        description="`smtp://user:password@host:587` (STARTTLS), `smtps://host`, `file:///directory` (one `.eml` a mail) or "
        "`console:`. Characters such as `@` in the password are written `%40`.",
    )
    from_address: str = Field(
        default="no-reply@localhost", max_length=254, description="Sender of every mail; must be set in production."
    )
    from_name: str = Field(
        default=product.NAME,
        min_length=1,
        max_length=100,
        description="Name of the sender, and of the application in mails.",
    )
    timeout: Duration = Field(
        default=timedelta(seconds=20), description="Longest wait for each answer of the mail server."
    )
    require_tls: bool = Field(
        default=True,
        description="Never send unencrypted, except to a server on this machine. Turn off only on a trusted network: then TLS is "
        "used where offered, whatever the certificate.",
    )
    ca_file: Path | None = Field(
        default=None,
        description="Certificates (PEM) to trust instead of the system's, for a mail server with a private one.",
    )
    allow_undelivered: bool = Field(
        default=False, description="Accept `console:` and `file:` in production too, where they deliver to nobody."
    )

    @field_validator("url")
    @classmethod
    def _name_a_transport(cls, value: SecretStr) -> SecretStr:
        try:
            url = urlsplit(value.get_secret_value())
            is_usable = {
                "smtp": bool(url.hostname) and url.port != 0,
                "smtps": bool(url.hostname) and url.port != 0,
                "file": not url.netloc and len(url.path) > 1,
                "console": not url.netloc and not url.path,
            }.get(url.scheme, False)
        except ValueError:
            is_usable = False
        if not is_usable:
            message = "write it as smtp://user:password@host:587, smtps://host, file:///directory or console:"
            raise ValueError(message)
        return value

    @field_validator("from_address")
    @classmethod
    def _be_an_address(cls, value: str) -> str:
        if not _MAILBOX.fullmatch(value):
            message = "write it as name@example.com"
            raise ValueError(message)
        return value

    @field_validator("from_name")
    @classmethod
    def _be_printable(cls, value: str) -> str:
        if not value.isprintable():
            message = "must be printable"
            raise ValueError(message)
        return value

    @property
    def delivers(self) -> bool:
        """Whether mail reaches anybody."""
        return urlsplit(self.url.get_secret_value()).scheme in {"smtp", "smtps"}

    @property
    def demands_tls(self) -> bool:
        """Whether an unencrypted connection is refused."""
        url = urlsplit(self.url.get_secret_value())
        return url.scheme == "smtps" or (self.require_tls and not _is_loopback(url.hostname or ""))


class JobsSettings(_Group):
    """Background jobs: mail and scheduled work."""

    in_process: bool | None = Field(
        default=None,
        description="Run jobs inside the web process. Unset: only in local; elsewhere `app worker` runs them.",
    )
    concurrency: int = Field(default=5, ge=1, le=100, description="Jobs that one worker runs at once.")
    poll_interval: Duration = Field(
        default=timedelta(seconds=5),
        description="How often a worker looks for jobs that it was not told of, such as those to be tried again.",
    )
    stalled_after: Duration = Field(
        default=timedelta(seconds=40),
        description="Silence after which a worker is taken for dead and its jobs are given to others. It reports four times as "
        "often.",
    )
    shutdown_grace: Duration = Field(
        default=timedelta(seconds=15),
        description="How long running jobs may take to finish once the worker is told to stop; then they are put back.",
    )
    keep_finished: Duration = Field(default=timedelta(days=1), description="Age at which finished jobs are deleted.")
    keep_failed: Duration = Field(
        default=timedelta(days=90), description="Age at which jobs that have failed for good are deleted."
    )


class AuditSettings(_Group):
    """The log of who did what."""

    keep: Duration = Field(
        default=timedelta(days=400),
        ge=timedelta(days=1),
        le=timedelta(days=36_500),
        description="How long an audit event is kept; older ones are deleted once a day.",
    )


class RateLimitSettings(_Group):
    """How often something may be tried."""

    enabled: bool = Field(
        default=True, description="Count attempts, and refuse the surplus with 429. Always on in production."
    )


class TelemetrySettings(_Group):
    """What the program tells of itself beyond its log."""

    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port for `/metrics`, never that of the API; 0 takes any free one. Unset: metrics are not exposed.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address to expose metrics on. They name operations and volumes: open it to the scraper alone.",
    )


class LogSettings(_Group):
    """What is written to standard output."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severity written.")
    format: Literal["json", "console"] | None = Field(
        default=None, description="Unset: readable lines in local, one JSON object a line elsewhere."
    )
    slow_request: Duration = Field(
        default=timedelta(seconds=1),
        description="A request that takes longer has `slow` in its line, which is then a warning.",
    )
    slow_query: Duration = Field(
        default=timedelta(milliseconds=500),
        description="A statement that takes longer is a warning with its text, without the values.",
    )
    sampled_routes: tuple[str, ...] = Field(
        default=("/livez", "/readyz"),
        description='Routes that are asked all the time, as JSON: `["/livez"]`. Of what goes well there, only some lines are '
        "written.",
    )
    sample_every: int = Field(
        default=100, ge=1, description="Of such requests one in this many is written; 1 writes every one."
    )


class _PlainEnvironment(PydanticBaseSettingsSource):
    """`DATABASE_URL` and `PORT`, which platforms set and people know."""

    @override
    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # pragma: no cover  # The base class demands it; `__call__` reads both at once.

    @override
    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if url := os.environ.get("DATABASE_URL"):
            found["database"] = {"url": url}
        if port := os.environ.get("PORT"):
            found["server"] = {"port": port}
        return found


class Settings(BaseSettings):
    """The whole configuration; frozen, so that nothing changes under a running process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    environment: Literal["local", "test", "production"] = Field(
        default="production", description="`production` refuses unsafe settings; `make run` says `local`."
    )
    server: ServerSettings = ServerSettings()
    database: DatabaseSettings
    auth: AuthSettings = AuthSettings()
    mail: MailSettings = MailSettings()
    jobs: JobsSettings = JobsSettings()
    audit: AuditSettings = AuditSettings()
    rate_limit: RateLimitSettings = RateLimitSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @override
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources = [init_settings, env_settings, _PlainEnvironment(settings_cls)]
        if _secrets_dir():
            sources.append(
                NestedSecretsSettingsSource(file_secret_settings, secrets_prefix=PREFIX, secrets_nested_delimiter="__")
            )
        return tuple(sources)

    @property
    def is_production(self) -> bool:
        """Whether unsafe settings are refused."""
        return self.environment == "production"

    @property
    def serves_docs(self) -> bool:
        """Whether `/docs` and `/openapi.json` exist."""
        return not self.is_production if self.server.docs is None else self.server.docs

    @property
    def runs_jobs_in_process(self) -> bool:
        """Whether the web process is also a worker."""
        return self.environment == "local" if self.jobs.in_process is None else self.jobs.in_process

    @property
    def drain_delay(self) -> timedelta:
        """How long the server stays open once it is told to end."""
        default = timedelta(seconds=5 if self.is_production else 0)
        return default if self.server.drain_delay is None else self.server.drain_delay

    @property
    def public_url(self) -> str:
        """Where clients reach this service, without a slash at the end."""
        return str(self.server.public_url or f"http://127.0.0.1:{self.server.port}").rstrip("/")

    @property
    def issuer(self) -> str:
        """`iss` of access tokens."""
        return self.auth.issuer or self.public_url

    def unsafe_for_production(self) -> Iterator[str]:
        """Name everything production must not run with."""
        if self.is_production:
            yield from _unsafe(self)


def load_settings(**overrides: object) -> Settings:
    """Read the settings from the environment; the error names every problem, and no value.

    Variables of libpq, such as `PGSSLMODE`, are removed from the environment.
    """
    forget_libpq()
    problems: list[str] = []
    settings = None
    try:
        settings = _build(overrides)
        problems += [*_unknown_variables(os.environ), *settings.unsafe_for_production()]
    except ValidationError as error:
        problems += _invalid(error, overrides)
    except SettingsError as error:
        problems += [*_unknown_variables(os.environ), str(error)]
    except (OSError, UnicodeDecodeError):
        problems.append(f"{SECRETS_DIR}: a file in it cannot be read as UTF-8 text")
    if (directory := os.environ.get(SECRETS_DIR)) and not Path(directory).is_dir():
        problems.append(f"{SECRETS_DIR}: there is no such directory")
    if settings is None or problems:
        raise ConfigurationError(
            "\n".join(["The settings cannot be used:", *(f"  - {problem}" for problem in problems)])
        )
    return settings


def _invalid(error: ValidationError, overrides: Mapping[str, object]) -> Iterator[str]:
    """Name the invalid settings, the unknown ones, and the unsafe ones among the rest."""
    errors = error.errors(include_input=False)
    invalid = {_variable(entry["loc"]): _reason(entry) for entry in errors}
    unknown = list(_unknown_variables(os.environ))
    already = {problem.split(":")[0] for problem in unknown}
    yield from unknown
    yield from (f"{variable}: {reason}" for variable, reason in invalid.items() if variable not in already)
    repaired = _build_repaired(overrides, [entry["loc"] for entry in errors])
    unsafe = repaired.unsafe_for_production() if repaired else ()
    yield from (problem for problem in unsafe if problem.split(":")[0] not in invalid)


def _secrets_dir() -> str | None:
    directory = os.environ.get(SECRETS_DIR)
    return directory if directory and Path(directory).is_dir() else None


def _build(overrides: Mapping[str, object]) -> Settings:
    return Settings(_secrets_dir=_secrets_dir(), **overrides)  # type: ignore[call-arg,arg-type]  # By name.


def _build_repaired(overrides: Mapping[str, object], invalid: list[tuple[int | str, ...]]) -> Settings | None:
    """Build the settings without the invalid ones, so that the unsafe ones are named in the same go."""

    class Repaired(Settings):
        @model_validator(mode="before")
        @classmethod
        def _take_out(cls, values: dict[str, Any]) -> dict[str, Any]:
            for group, *rest in invalid:
                members = values.pop(str(group), {}) if rest else {}
                values[str(group)] = {name: value for name, value in members.items() if name != rest[0]}
            return {**values, "database": {"url": _SAFE_URL, **values["database"]}}

    if ("environment",) in invalid:
        # Nobody knows then whether the rest is unsafe.
        return None
    return Repaired(_secrets_dir=_secrets_dir(), **overrides)  # type: ignore[call-arg,arg-type]  # By name.


def variables() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Yield every setting as (environment variable, field name, the model that declares it)."""
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, _Group):
            yield from ((f"{PREFIX}{name}__{inner}".upper(), inner, group) for inner in group.model_fields)
        else:
            yield f"{PREFIX}{name}".upper(), name, Settings


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _variable(location: tuple[int | str, ...]) -> str:
    if location == ("database",):
        return "DATABASE_URL"
    name = (PREFIX + "__".join(str(part) for part in location[:2])).upper()
    return name if name in os.environ else _PLAIN_NAMES.get(name, name)


def _reason(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        return "there is no such setting"
    return error["msg"].removeprefix("Value error, ")


def _unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    known = {name for name, _, _ in variables()} | {SECRETS_DIR} | kubernetes_variables(environment)
    for name in sorted(environment):
        # A whole group may be given as one JSON object (APP_AUTH='{…}').
        if name.startswith(PREFIX) and name not in known and not any(key.startswith(f"{name}__") for key in known):
            near = difflib.get_close_matches(name, known, n=1)
            yield f"{name}: there is no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _unsafe(settings: Settings) -> Iterator[str]:
    yield from _unsafe_login(settings)
    yield from _unsafe_surroundings(settings)
    yield from _unsafe_mail(settings.mail)


def _unsafe_login(settings: Settings) -> Iterator[str]:
    auth = settings.auth
    if auth.signing_keys is None and auth.signing_keys_file is None:
        yield "APP_AUTH__SIGNING_KEYS or APP_AUTH__SIGNING_KEYS_FILE: is missing; make one with `app keys generate`"
    if auth.bcrypt_cost < _MIN_PRODUCTION_BCRYPT_COST:
        yield f"APP_AUTH__BCRYPT_COST: must be {_MIN_PRODUCTION_BCRYPT_COST} or more"
    if not settings.rate_limit.enabled:
        yield "APP_RATE_LIMIT__ENABLED: must stay on"


def _unsafe_surroundings(settings: Settings) -> Iterator[str]:
    database, server = settings.database, settings.server
    url = database.sqlalchemy_url()
    if server.public_url is None or server.public_url.scheme != "https":
        yield "APP_SERVER__PUBLIC_URL: must be the https:// address that clients use"
    if "*" in server.cors_origins:
        yield "APP_SERVER__CORS_ORIGINS: name the origins; * lets every web site call this API"
    if url.password is not None and url.password.lower() in _PLACEHOLDERS:
        yield "DATABASE_URL: the password is a placeholder"
    yield from _unencrypted(database)
    if settings.log.level == "debug":
        yield "APP_LOG__LEVEL: debug is not for production"


def _unencrypted(database: DatabaseSettings) -> Iterator[str]:
    urls = {"DATABASE_URL": database.sqlalchemy_url()}
    if database.direct_url:
        urls["APP_DATABASE__DIRECT_URL"] = database.direct_sqlalchemy_url()
    for name, url in urls.items():
        if database.require_tls and url.query["sslmode"] in _UNVERIFIED_MODES:
            yield (
                f"{name}: append ?ssl=verify-full (or require, verify-ca), or set APP_DATABASE__REQUIRE_TLS=false on a "
                "trusted network"
            )


def _unsafe_mail(mail: MailSettings) -> Iterator[str]:
    if not mail.delivers and not mail.allow_undelivered:
        yield "APP_MAIL__URL: must be smtp:// or smtps://, or set APP_MAIL__ALLOW_UNDELIVERED=true"
    if mail.delivers and mail.from_address.endswith("@localhost"):
        yield "APP_MAIL__FROM_ADDRESS: is missing; mail must come from an address of yours"
