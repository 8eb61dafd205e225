import os
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import AnyHttpUrl, SecretStr, ValidationError

from app.auth.settings import AuthSettings, issuer
from app.core.config import SECRETS_DIR, ServerSettings, Settings
from app.core.errors import ConfigurationError
from app.jobs.settings import runs_in_web_process
from app.mail.settings import MailSettings
from app.settings import load_settings, variables
from tests.core.test_environment import IN_EVERY_POD

type Environment = Callable[..., None]

URL = "postgresql://app:pw@db.example.com/app?ssl=verify-full"
SAFE = {
    "DATABASE_URL": URL,
    "APP_SERVER__PUBLIC_URL": "https://api.example.com",
    "APP_AUTH__SIGNING_KEYS": '{"keys": []}',
    "APP_MAIL__URL": "smtp://mail.example.com",
    "APP_MAIL__FROM_ADDRESS": "app@example.com",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Return a function that sets these variables and removes all others that the settings read."""

    def set_only(**values: str) -> None:
        for name in [*(name for name, _, _ in variables()), SECRETS_DIR, "DATABASE_URL", "PORT"]:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    set_only()
    return set_only


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    return tmp_path


def problems() -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    first, *rest = str(caught.value).splitlines()
    assert first == "The settings cannot be used:"
    return [line.removeprefix("  - ") for line in rest]


def database_url(settings: Settings) -> str:
    return settings.database.url.get_secret_value()


def test_a_safe_production_configuration_loads(environment: Environment) -> None:
    environment(**SAFE)

    settings = load_settings()

    assert settings.is_production
    assert issuer(settings) == settings.public_url == "https://api.example.com"
    assert not settings.serves_docs
    assert list(settings.unsafe_in_production()) == []


def test_one_error_lists_all_unsafe_settings(environment: Environment) -> None:
    environment(
        DATABASE_URL="postgresql://app:ChangeMe@db/app",
        APP_SERVER__PUBLIC_URL="http://api.example.com",
        APP_SERVER__CORS_ORIGINS="https://app.example.com,*",
        APP_LOG__LEVEL="debug",
        APP_AUTH__BCRYPT_COST="9",
        APP_RATE_LIMIT__ENABLED="false",
    )

    assert [problem.split(":")[0] for problem in problems()] == [
        "APP_SERVER__PUBLIC_URL",
        "APP_SERVER__CORS_ORIGINS",
        "DATABASE_URL",
        "DATABASE_URL",
        "APP_RATE_LIMIT__ENABLED",
        "APP_LOG__LEVEL",
        "APP_MAIL__URL",
        "APP_AUTH__SIGNING_KEYS or APP_AUTH__SIGNING_KEYS_FILE",
        "APP_AUTH__BCRYPT_COST",
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"APP_AUTH__SIGNING_KEYS": ""}, "APP_AUTH__SIGNING_KEYS or APP_AUTH__SIGNING_KEYS_FILE: is missing"),
        ({"APP_SERVER__PUBLIC_URL": ""}, "APP_SERVER__PUBLIC_URL: must be the https:// address"),
        ({"APP_SERVER__PUBLIC_URL": "http://api.example.com"}, "APP_SERVER__PUBLIC_URL: must be the https:// address"),
        ({"DATABASE_URL": "postgresql://a:postgres@h/d?ssl=require"}, "DATABASE_URL: the password is a placeholder"),
        ({"DATABASE_URL": "postgresql://a:SECRET@h/d?ssl=require"}, "DATABASE_URL: the password is a placeholder"),
        ({"DATABASE_URL": "postgresql://a:b@h/d"}, "DATABASE_URL: append ?ssl=verify-full"),
        ({"DATABASE_URL": "postgresql://a:b@h/d?sslmode=prefer"}, "DATABASE_URL: append ?ssl=verify-full"),
        ({"DATABASE_URL": "postgresql://a:b@h/d?ssl=require&sslmode=disable"}, "DATABASE_URL: append ?ssl=verify-full"),
        (
            {"APP_DATABASE__DIRECT_URL": "postgresql://a:b@h/d?ssl=allow"},
            "APP_DATABASE__DIRECT_URL: append ?ssl=verify-full",
        ),
        (
            {"APP_DATABASE__READ_URL": "postgresql://a:b@h/d?ssl=allow"},
            "APP_DATABASE__READ_URL: append ?ssl=verify-full",
        ),
        ({"APP_LOG__LEVEL": "debug"}, "APP_LOG__LEVEL: debug is not allowed in production"),
        ({"APP_SERVER__CORS_ORIGINS": "*"}, "APP_SERVER__CORS_ORIGINS: list the origins"),
        ({"APP_AUTH__BCRYPT_COST": "9"}, "APP_AUTH__BCRYPT_COST: must be 10 or more"),
        ({"APP_RATE_LIMIT__ENABLED": "false"}, "APP_RATE_LIMIT__ENABLED: must be true"),
        ({"APP_MAIL__URL": ""}, "APP_MAIL__URL: must be smtp:// or smtps://"),
        ({"APP_MAIL__URL": "file:///var/mail"}, "APP_MAIL__URL: must be smtp:// or smtps://"),
        ({"APP_MAIL__FROM_ADDRESS": ""}, "APP_MAIL__FROM_ADDRESS: is missing"),
    ],
)
def test_each_unsafe_setting_alone_is_refused_in_production(
    environment: Environment, changes: dict[str, str], named: str
) -> None:
    environment(**{**SAFE, **changes})

    (problem,) = problems()

    assert problem.startswith(named)


@pytest.mark.parametrize("name", ["local", "test"])
def test_unsafe_settings_are_accepted_outside_production(environment: Environment, name: str) -> None:
    environment(APP_ENVIRONMENT=name, DATABASE_URL="postgresql://a:postgres@h/d", APP_LOG__LEVEL="debug")

    settings = load_settings()

    assert settings.serves_docs
    assert settings.public_url == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "changes",
    [
        {"APP_AUTH__SIGNING_KEYS": "", "APP_AUTH__SIGNING_KEYS_FILE": "/run/keys.json"},
        {"DATABASE_URL": "postgresql://a:b@h/d", "APP_DATABASE__REQUIRE_TLS": "false"},
        {"DATABASE_URL": "postgresql://a:b@h/d?sslmode=verify-ca", "APP_DATABASE__CA_FILE": "/etc/ca.pem"},
        {"DATABASE_URL": "postgresql://a:b@h/d?sslmode=verify-ca&sslrootcert=/etc/ca.pem"},
        {"APP_AUTH__BCRYPT_COST": "10"},
        {"APP_MAIL__URL": "console:", "APP_MAIL__ALLOW_UNDELIVERED": "true"},
        {"APP_SERVER__CORS_ORIGINS": "https://app.example.com"},
        {"APP_MAIL__URL": "file:///var/mail", "APP_MAIL__ALLOW_UNDELIVERED": "true"},
    ],
)
def test_safe_alternatives_are_accepted_in_production(environment: Environment, changes: dict[str, str]) -> None:
    environment(**{**SAFE, **changes})

    assert load_settings().is_production


def test_with_an_empty_environment_the_error_lists_all_required_settings() -> None:
    assert [problem.split(":")[0] for problem in problems()] == [
        "DATABASE_URL",
        "APP_SERVER__PUBLIC_URL",
        "APP_MAIL__URL",
        "APP_AUTH__SIGNING_KEYS or APP_AUTH__SIGNING_KEYS_FILE",
    ]


def test_one_error_lists_invalid_unknown_and_unsafe_settings(environment: Environment) -> None:
    environment(
        DATABASE_URL="postgresql://a:postgres@h/d",
        APP_DATABASE__POOL_SIZE="many",
        APP_AUTH__BCRYPT_COST="99",
        APP_AUTH__ISUER="https://x.example",
        APP_LOG__LEVEL="debug",
    )

    assert [problem.split(":")[0] for problem in problems()] == [
        "APP_AUTH__ISUER",
        "APP_DATABASE__POOL_SIZE",
        "APP_AUTH__BCRYPT_COST",
        "APP_SERVER__PUBLIC_URL",
        "DATABASE_URL",
        "DATABASE_URL",
        "APP_LOG__LEVEL",
        "APP_MAIL__URL",
        "APP_AUTH__SIGNING_KEYS or APP_AUTH__SIGNING_KEYS_FILE",
    ]


def test_an_invalid_database_url_does_not_hide_unsafe_settings(environment: Environment) -> None:
    environment(**{**SAFE, "DATABASE_URL": "mysql://a:b@h/d", "APP_LOG__LEVEL": "debug"})

    assert problems() == [
        "DATABASE_URL: write it as postgresql://user:password@host:5432/database",
        "APP_LOG__LEVEL: debug is not allowed in production; use info",
    ]


def test_an_invalid_environment_does_not_hide_other_invalid_settings(environment: Environment) -> None:
    environment(**SAFE, APP_ENVIRONMENT="prod", APP_LOG__FORMAT="xml")

    assert problems() == [
        "APP_ENVIRONMENT: Input should be 'local', 'test' or 'production'",
        "APP_LOG__FORMAT: Input should be 'json' or 'console'",
    ]


@pytest.mark.parametrize(
    "invalid",
    [
        {"DATABASE_URL": "postgresql://a:CANARY@h:CANARY/d"},
        {"DATABASE_URL": "CANARY"},
        {"DATABASE_URL": "postgresql://a:b@h/d?ssl=require", "APP_SERVER__PORT": "CANARY"},
        {"APP_SERVER__PUBLIC_URL": "CANARY"},
        {"APP_SERVER__CORS_ORIGINS": "CANARY"},
        {"APP_AUTH": '{"signing_keys": CANARY'},
        {"APP_AUTH": '["CANARY"]'},
        {"APP_AUTH__ACCESS_TOKEN_TTL": "CANARY"},
        {"APP_AUTH__PASSWORD_HASH": "CANARY"},
        {"APP_DATABASE__REQUIRE_TLS": "CANARY"},
        {"APP_DATABASE__APPLICATION_NAME": "CANARY" * 10},
        {"APP_ENVIRONMENT": "CANARY"},
        {"APP_UNHEARD_OF": "CANARY"},
        {"APP_MAIL__URL": "smtp://a:CANARY@h:CANARY"},
        {"APP_MAIL__FROM_ADDRESS": "CANARY"},
    ],
)
def test_the_error_contains_no_values(environment: Environment, invalid: dict[str, str]) -> None:
    environment(**{**SAFE, **invalid})

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    assert "CANARY" not in str(caught.value)
    # A printed traceback must not contain the value either.
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("APP_AUTH__ISUER", "; did you mean APP_AUTH__ISSUER?"),
        ("APP_DATABASE_URL", "; did you mean APP_DATABASE__URL?"),
        ("APP_LOGLEVEL", "; did you mean APP_LOG__LEVEL?"),
        ("APP_XYZZY", ""),
    ],
)
def test_an_unknown_variable_is_refused_with_the_closest_name(
    environment: Environment, name: str, suggestion: str
) -> None:
    environment(**SAFE, **{name: "x"})

    assert problems() == [f"{name}: there is no such setting{suggestion}"]


def test_kubernetes_variables_of_a_service_with_the_same_name_are_ignored(environment: Environment) -> None:
    environment(**SAFE, **IN_EVERY_POD)

    assert load_settings().is_production


def test_a_misspelt_setting_is_reported_among_kubernetes_variables(environment: Environment) -> None:
    environment(**SAFE, **IN_EVERY_POD, APP_SERVER_WORKERS="2")

    assert problems() == ["APP_SERVER_WORKERS: there is no such setting; did you mean APP_SERVER__WORKERS?"]


def test_loading_the_settings_removes_the_variables_of_libpq(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(**SAFE)
    monkeypatch.setenv("PGSSLMODE", "disable")
    monkeypatch.setenv("PGSERVICE", "no such service")

    load_settings()

    assert not {"PGSSLMODE", "PGSERVICE"} & os.environ.keys()


def test_a_group_can_be_set_as_one_json_object(environment: Environment) -> None:
    environment(**SAFE, APP_LOG='{"level": "warning"}', APP_LOG__FORMAT="console")

    settings = load_settings()

    assert (settings.log.level, settings.log.format) == ("warning", "console")


def test_an_unknown_member_of_a_json_group_is_refused(environment: Environment) -> None:
    environment(**SAFE, APP_LOG='{"volume": "11"}')

    assert problems() == ["APP_LOG__VOLUME: there is no such setting"]


def test_an_invalid_json_group_is_reported(environment: Environment) -> None:
    environment(**SAFE, APP_LOG="{", APP_SERVER='{"port": 8001}', APP_XYZZY="x")

    unknown, unreadable = problems()

    assert unknown.startswith("APP_XYZZY")
    assert unreadable == "APP_LOG: write a JSON object"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("500ms", 0.5), ("30s", 30), ("10m", 600), ("0.5h", 1800), ("2d", 172800), (" 3s ", 3)],
)
def test_a_duration_is_a_number_of_seconds_or_has_a_unit(environment: Environment, text: str, seconds: float) -> None:
    environment(**SAFE, APP_DATABASE__STATEMENT_TIMEOUT=text)

    assert load_settings().database.statement_timeout == timedelta(seconds=seconds)


@pytest.mark.parametrize("given", [90, 90.0, "90", timedelta(seconds=90)])
def test_a_duration_can_be_passed_as_a_number_or_a_timedelta(environment: Environment, given: object) -> None:
    environment(**SAFE)

    assert load_settings(database={"pool_recycle": given}).database.pool_recycle == timedelta(seconds=90)


@pytest.mark.parametrize("text", ["", "-1", "1e3", "5 s", "5S", "٣s", "1w", "999999999999d", "0", "0s", "inf"])
def test_a_duration_that_is_invalid_or_not_positive_is_refused(environment: Environment, text: str) -> None:
    environment(**SAFE)

    with pytest.raises(ConfigurationError, match="APP_DATABASE__POOL_RECYCLE"):
        load_settings(database={"pool_recycle": text})


@pytest.mark.parametrize("text", ["0.4ms", "25d"])
def test_a_timeout_that_postgresql_cannot_represent_is_refused(environment: Environment, text: str) -> None:
    environment(**SAFE, APP_DATABASE__STATEMENT_TIMEOUT=text)

    (problem,) = problems()

    assert problem.startswith("APP_DATABASE__STATEMENT_TIMEOUT")


def test_the_url_for_reads_leads_to_a_standby(environment: Environment) -> None:
    environment(**SAFE)
    without = load_settings().database.read_sqlalchemy_url()
    environment(**SAFE, APP_DATABASE__READ_URL="postgresql://a:b@h/d?ssl=require")

    url = load_settings().database.read_sqlalchemy_url()

    assert without is None
    assert url is not None
    assert url.query["target_session_attrs"] == "standby"


def test_reads_from_a_standby_behind_a_pooler_need_the_direct_url(environment: Environment) -> None:
    pooled = {"APP_DATABASE__READ_URL": "postgresql://a:b@h/d?ssl=require", "APP_DATABASE__TRANSACTION_POOLER": "true"}
    environment(**SAFE, **pooled)
    (problem,) = problems()
    environment(**SAFE, **pooled, APP_DATABASE__DIRECT_URL="postgresql://a:b@h/d?ssl=require")

    assert "needs APP_DATABASE__DIRECT_URL too" in problem
    assert load_settings().database.read_url is not None


def test_a_null_setting_counts_as_unset(environment: Environment) -> None:
    environment(**SAFE, APP_DATABASE='{"direct_url": null}')

    settings = load_settings()

    assert settings.database.direct_url is None
    assert settings.database.direct_sqlalchemy_url() == settings.database.sqlalchemy_url()


def test_a_number_too_large_for_a_duration_is_refused(environment: Environment) -> None:
    environment(**SAFE, APP_DATABASE='{"pool_recycle": 1e300}')

    (problem,) = problems()

    assert problem.startswith("APP_DATABASE__POOL_RECYCLE: write a duration")


def test_origins_are_separated_by_commas(environment: Environment) -> None:
    environment(**SAFE, APP_SERVER__CORS_ORIGINS="https://a.example, http://localhost:5173")

    assert load_settings().server.cors_origins == ("https://a.example", "http://localhost:5173")


@pytest.mark.parametrize(
    "written", ["10.0.0.0/8,192.0.2.1", " 10.0.0.0/8, 192.0.2.1/32 ", '["10.0.0.0/8", "192.0.2.1"]']
)
def test_lists_are_separated_by_commas_or_json(environment: Environment, written: str) -> None:
    environment(**SAFE, APP_SERVER__TRUSTED_PROXIES=written, APP_LOG__SAMPLED_ROUTES="/livez,/things/{id}")

    settings = load_settings()

    assert settings.server.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32"))
    assert settings.log.sampled_routes == ("/livez", "/things/{id}")


@pytest.mark.parametrize("written", ["everywhere", '["10.0.0.0/8"', "10.0.0.0/8;192.0.2.1"])
def test_an_invalid_list_is_named_by_its_variable(environment: Environment, written: str) -> None:
    environment(**SAFE, APP_SERVER__TRUSTED_PROXIES=written)

    assert [problem.split(":")[0] for problem in problems()] == ["APP_SERVER__TRUSTED_PROXIES"]


def test_words_are_accepted_in_any_case(environment: Environment) -> None:
    environment(**SAFE, APP_LOG__LEVEL="WARNING", APP_LOG__FORMAT="Console")

    assert (load_settings().log.level, load_settings().log.format) == ("warning", "console")


def test_origins_can_be_passed_as_a_tuple(environment: Environment) -> None:
    environment(**SAFE)

    settings = load_settings(server={"public_url": "https://x.example", "cors_origins": ("https://a.example",)})

    assert settings.server.cors_origins == ("https://a.example",)


@pytest.mark.parametrize(
    "text", ["a.example", "https://a.example/", "https://a.example/app", '["a.example"]', "https://a.example,"]
)
def test_an_invalid_origin_is_refused(environment: Environment, text: str) -> None:
    environment(**SAFE, APP_SERVER__CORS_ORIGINS=text)

    assert problems() == ["APP_SERVER__CORS_ORIGINS: write origins as https://host, separated by commas"]


@pytest.mark.parametrize("path", ["?x=1", "#x", "/a%20b", "/a%2Fb", "/a//b", "/a b", "/é"])
def test_a_public_url_with_more_than_a_plain_path_is_refused(environment: Environment, path: str) -> None:
    environment(**SAFE | {"APP_SERVER__PUBLIC_URL": f"https://api.example.com{path}"})

    (problem,) = problems()
    assert problem.startswith("APP_SERVER__PUBLIC_URL: write https://host or https://host/path")


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        (None, ""),
        ("https://api.example.com", ""),
        ("https://api.example.com/", ""),
        ("https://api.example.com/bed", "/bed"),
        ("https://api.example.com/a/b-1.x_~/", "/a/b-1.x_~"),
    ],
)
def test_the_path_of_the_public_url_is_the_prefix(url: str | None, prefix: str) -> None:
    assert ServerSettings(public_url=AnyHttpUrl(url) if url else None).path_prefix == prefix


@pytest.mark.parametrize("text", ["*", "X-Tenant,", "x tenant", "x:y", "X-Tenant,*"])
def test_an_invalid_cors_header_is_refused(environment: Environment, text: str) -> None:
    environment(**SAFE, APP_SERVER__CORS_HEADERS=text)

    assert problems() == ["APP_SERVER__CORS_HEADERS: write names of headers as X-Tenant, separated by commas"]


def test_cors_headers_are_separated_by_commas(environment: Environment) -> None:
    environment(**SAFE, APP_SERVER__CORS_HEADERS="X-Tenant, idempotency-key")

    assert load_settings().server.cors_headers == ("X-Tenant", "idempotency-key")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://a:b@h/d", "postgresql+asyncpg://a:b@h/d"),
        ("postgresql://a:b@h:6432/d", "postgresql+asyncpg://a:b@h:6432/d"),
        ("postgresql+psycopg://a:b@h/d", "postgresql+asyncpg://a:b@h/d"),
        ("postgresql://a:b@h/d?sslmode=require", "postgresql+asyncpg://a:b@h/d?sslmode=require"),
        ("postgresql://a:p%40%2Fss@h/d?ssl=require", "postgresql+asyncpg://a:p%40%2Fss@h/d?sslmode=require"),
        ("postgresql:///d?host=/var/run/postgresql", "postgresql+asyncpg:///d?host=%2Fvar%2Frun%2Fpostgresql"),
    ],
)
def test_the_database_url_is_rewritten_for_the_driver(environment: Environment, given: str, used: str) -> None:
    environment(APP_ENVIRONMENT="local", DATABASE_URL=given)

    assert database_url(load_settings()) == used


@pytest.mark.parametrize(
    "url", ["", "x", "mysql://a:b@h/d", "postgresql://h", "postgresql://h:port/d", "sqlite:///x", "postgresql://"]
)
def test_an_invalid_postgresql_url_is_refused(environment: Environment, url: str) -> None:
    environment(APP_ENVIRONMENT="local")

    with pytest.raises(ConfigurationError, match="write it as postgresql://user:password@host:5432/database"):
        load_settings(database={"url": url})


def test_a_url_parameter_that_the_driver_does_not_know_is_refused(environment: Environment) -> None:
    environment(APP_ENVIRONMENT="local", DATABASE_URL="postgresql://a:b@h/d?sslmode=require&channel_binding=require")

    assert problems() == ["DATABASE_URL: the driver does not know the parameter channel_binding; remove it"]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("ssl=true", "ssl must be one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("ssl=require&ssl=disable", "it has sslmode more than once"),
        ("ssl=verify-full&sslrootcert=/a&sslrootcert=/b", "it has sslrootcert more than once"),
        ("ssl=require&sslrootcert=system", "sslrootcert=system needs ssl=verify-full"),
        ("sslrootcert=/a", "certificates are set, but ssl=prefer does not check them; append ?ssl=verify-full"),
        ("ssl=allow&sslrootcert=/a", "certificates are set, but ssl=allow does not check them"),
        ("ssl=verify-ca", "ssl=verify-ca needs certificates of your own: set APP_DATABASE__CA_FILE"),
        ("ssl=require&sslcert=/a", "set sslcert and sslkey together"),
        ("ssl=require&sslkey=/a", "set sslcert and sslkey together"),
    ],
)
def test_inconsistent_tls_parameters_are_refused(environment: Environment, query: str, reason: str) -> None:
    environment(APP_ENVIRONMENT="local", DATABASE_URL=f"postgresql://a:b@h/d?{query}")

    (problem,) = problems()

    assert problem.startswith(f"DATABASE_URL: {reason}")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "postgresql://a:b@h/d"),
        ("DATABASE_URL", "postgresql://a:b@127.0.0.1/d"),
        ("APP_DATABASE__DIRECT_URL", "postgresql://a:b@h/d?ssl=disable"),
        ("APP_DATABASE__READ_URL", "postgresql://a:b@h/d?ssl=disable"),
    ],
)
def test_a_certificate_file_that_would_not_be_used_is_refused(environment: Environment, name: str, url: str) -> None:
    environment(**{"DATABASE_URL": URL, "APP_ENVIRONMENT": "local", "APP_DATABASE__CA_FILE": "/etc/ca.pem", name: url})

    (problem,) = problems()

    assert "certificates are set, but ssl=" in problem


def test_the_variables_that_platforms_set_are_read(environment: Environment) -> None:
    environment(APP_ENVIRONMENT="local", DATABASE_URL="postgresql://a:b@h/d", PORT="8123")

    settings = load_settings()

    assert database_url(settings) == "postgresql+asyncpg://a:b@h/d"
    assert settings.server.port == 8123
    assert settings.public_url == "http://127.0.0.1:8123"


def test_the_long_names_take_precedence_over_the_names_of_platforms(environment: Environment) -> None:
    environment(
        APP_ENVIRONMENT="local",
        DATABASE_URL="postgresql://a:b@platform/d",
        APP_DATABASE__URL="postgresql://a:b@chosen/d",
        PORT="1",
        APP_SERVER__PORT="2",
    )

    settings = load_settings()

    assert database_url(settings) == "postgresql+asyncpg://a:b@chosen/d"
    assert settings.server.port == 2


@pytest.mark.parametrize("name", ["PORT", "APP_SERVER__PORT"])
def test_a_problem_names_the_variable_that_was_set(environment: Environment, name: str) -> None:
    environment(**SAFE, **{name: "70000"})

    assert problems() == [f"{name}: Input should be less than or equal to 65535"]


def test_secrets_can_be_files(environment: Environment, secrets: Path) -> None:
    (secrets / "APP_AUTH__SIGNING_KEYS").write_text('{"keys": []}\n')
    (secrets / "app_database__url").write_text(f"{URL}\n")
    (secrets / "OTHER_SERVICE").write_text("not ours")
    environment(APP_ENVIRONMENT="local", APP_SECRETS_DIR=str(secrets))

    settings = load_settings()

    keys = settings.of(AuthSettings).signing_keys
    assert keys is not None
    assert keys.get_secret_value() == '{"keys": []}'
    assert database_url(settings).endswith("@db.example.com/app?sslmode=verify-full")


def test_a_variable_takes_precedence_over_a_file(environment: Environment, secrets: Path) -> None:
    (secrets / "APP_AUTH__AUDIENCE").write_text("from the file")
    environment(**SAFE, APP_SECRETS_DIR=str(secrets), APP_AUTH__AUDIENCE="from the variable")

    assert load_settings().of(AuthSettings).audience == "from the variable"


def test_a_file_with_an_unknown_name_is_refused(environment: Environment, secrets: Path) -> None:
    (secrets / "APP_AUTH__ISUER").write_text("CANARY")
    environment(**SAFE, APP_SECRETS_DIR=str(secrets))

    assert problems() == ["APP_AUTH__ISUER: there is no such setting"]


def test_a_file_that_is_not_text_is_refused(environment: Environment, secrets: Path) -> None:
    (secrets / "APP_AUTH__ISSUER").write_bytes(b"\xff\xfe")
    environment(**SAFE, APP_SECRETS_DIR=str(secrets))

    assert problems() == ["APP_SECRETS_DIR: a file in it cannot be read as UTF-8 text"]


def test_a_secrets_directory_that_does_not_exist_is_refused(environment: Environment, secrets: Path) -> None:
    (secrets / "file").touch()

    for name in ("missing", "file"):
        environment(**SAFE, APP_SECRETS_DIR=str(secrets / name))

        assert problems() == ["APP_SECRETS_DIR: there is no such directory"]


def test_an_empty_variable_counts_as_unset(environment: Environment) -> None:
    environment(**{**SAFE, "APP_LOG__LEVEL": "", "PORT": ""})

    settings = load_settings()

    assert settings.log.level == "info"
    assert settings.server.port == 8000


@pytest.mark.parametrize("group", [None, "server", "database", "auth", "mail", "jobs", "log"])
def test_settings_cannot_be_changed(environment: Environment, group: str | None) -> None:
    environment(**SAFE)
    settings = load_settings()
    target: Any = getattr(settings, group) if group else settings
    name = next(iter(type(target).model_fields))

    with pytest.raises(ValidationError, match="frozen"):
        setattr(target, name, getattr(target, name))


def test_the_docs_setting_overrides_the_default(environment: Environment) -> None:
    environment(**SAFE, APP_SERVER__DOCS="true")
    assert load_settings().serves_docs

    environment(APP_ENVIRONMENT="local", DATABASE_URL=URL, APP_SERVER__DOCS="false")
    assert not load_settings().serves_docs


def test_the_issuer_defaults_to_the_public_url(environment: Environment) -> None:
    environment(**{**SAFE, "APP_SERVER__PUBLIC_URL": "https://api.example.com/"})
    assert issuer(load_settings()) == "https://api.example.com"

    environment(**SAFE, APP_AUTH__ISSUER="https://login.example.com")
    assert issuer(load_settings()) == "https://login.example.com"


def test_settings_do_not_print_their_secrets(environment: Environment) -> None:
    environment(**{**SAFE, "DATABASE_URL": "postgresql://a:CANARY@h/d?ssl=require", "APP_AUTH__SIGNING_KEYS": "CANARY"})

    settings = load_settings()

    assert "CANARY" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert settings.database.sqlalchemy_url().password == "CANARY"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("APP_MAIL__URL", "pop3://mail.example.com", "write it as smtp://user:password@host:587"),
        ("APP_MAIL__URL", "smtp:///", "write it as smtp://user:password@host:587"),
        ("APP_MAIL__URL", "smtp://[CANARY", "write it as smtp://user:password@host:587"),
        ("APP_MAIL__FROM_ADDRESS", "Ada <ada@example.com>", "write it as name@example.com"),
        ("APP_MAIL__FROM_NAME", "Ada\nBcc: x@example.com", "contains an unprintable character"),
    ],
)
def test_invalid_mail_settings_are_refused(environment: Environment, name: str, value: str, reason: str) -> None:
    environment(**{**SAFE, name: value})

    (problem,) = problems()

    assert problem.startswith(f"{name}: {reason}")


@pytest.mark.parametrize(
    ("url", "require_tls", "demanded"),
    [
        ("smtp://mail.example.com", True, True),
        ("smtp://mail.example.com", False, False),
        ("smtps://mail.example.com", False, True),
        ("smtp://127.0.0.1:1025", True, False),
        ("smtp://[::1]:1025", True, False),
        ("smtp://localhost", True, False),
        ("smtp://localhost.example.com", True, True),
        ("smtp://10.0.0.1", True, True),
        ("smtps://localhost", True, True),
    ],
)
def test_mail_requires_tls_except_to_this_machine(url: str, require_tls: bool, demanded: bool) -> None:
    assert MailSettings(url=SecretStr(url), require_tls=require_tls).demands_tls == demanded


@pytest.mark.parametrize(
    ("name", "chosen", "runs"),
    [("local", "", True), ("local", "false", False), ("test", "", False), ("test", "true", True)],
)
def test_jobs_run_in_the_web_process_locally_or_if_configured(
    environment: Environment, name: str, chosen: str, runs: bool
) -> None:
    environment(APP_ENVIRONMENT=name, DATABASE_URL=URL, APP_JOBS__IN_PROCESS=chosen)

    assert runs_in_web_process(load_settings()) == runs


def test_every_setting_is_described_and_has_one_variable() -> None:
    found = list(variables())

    assert len({name for name, _, _ in found}) == len(found) > 30
    assert [name for name, field, model in found if not model.model_fields[field].description] == []
