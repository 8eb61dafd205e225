"""The distribution, the OpenAPI document, the settings and the password rules use the name of the product."""

import tomllib
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from app.auth.settings import AuthSettings
from app.cli import cli
from app.core import product
from app.core.config import DatabaseSettings, Settings
from app.core.errors import InvalidInputError
from app.core.security.passwords import refuse_weak
from app.mail.settings import MailSettings
from app.main import create_app
from tests.conftest import ROOT
from tests.core.applications import serving


def test_the_distribution_has_the_slug_as_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["name"] == product.SLUG, 'change the name with: make rename NAME="…"'
    assert product.release() == version(product.SLUG) == project["version"]


def test_the_version_is_unknown_if_no_distribution_has_the_slug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "SLUG", "a-name-that-nothing-is-installed-under")

    assert product.release() == "unknown"


def test_the_openapi_document_and_the_command_line_show_the_name(settings: Settings) -> None:
    document = create_app(settings).openapi()["info"]
    shown = CliRunner().invoke(cli, ["--help"]).output

    assert document == {"title": product.NAME, "version": product.API_VERSION, "description": product.DESCRIPTION}
    assert product.NAME in " ".join(shown.split())


def test_defaults_of_settings_use_the_name() -> None:
    assert DatabaseSettings.model_fields["application_name"].default == product.SLUG
    assert AuthSettings.model_fields["audience"].default == product.SLUG
    assert MailSettings.model_fields["from_name"].default == product.NAME


@pytest.mark.parametrize(
    ("name", "slug", "password"),
    [
        ("Acme Billing", "acme-billing", "billing acme 1815 1852"),
        ("Überall", "uberall", "überall 1815 1852"),
        ("Überall", "uberall", "uberall 1815 1852"),
        ("Ace", "ace", "ace 1815 1852 ace"),
    ],
)
def test_a_password_made_of_the_name_is_rejected(
    monkeypatch: pytest.MonkeyPatch, name: str, slug: str, password: str
) -> None:
    monkeypatch.setattr(product, "NAME", name)
    monkeypatch.setattr(product, "SLUG", slug)

    with pytest.raises(InvalidInputError) as refusal:
        refuse_weak(password, min_length=15)

    assert [error.code for error in refusal.value.errors] == ["password_contextual"]


async def test_the_documentation_page_escapes_the_name(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "NAME", "R&D <b>")

    async with serving(create_app(settings)) as client:
        page = await client.get("/docs")

    assert "<title>R&amp;D &lt;b&gt;</title>" in page.text
