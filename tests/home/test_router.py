"""The pages for development: what they show, and where they do not exist."""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from httpx2 import AsyncClient

from app.core import product
from app.core.resources import ReadinessCheck
from app.mail.mailer import make_mailer
from app.mail.message import Message, parse_address
from app.mail.settings import MailSettings
from app.mail.transports import FileTransport
from app.main import create_app
from tests.conftest import make_settings, running

type Pages = Callable[..., AbstractAsyncContextManager[AsyncClient]]


@pytest.fixture
def pages(database_url: str, tmp_path: Path) -> Pages:
    """A client of an application that writes its mails to a directory."""

    @asynccontextmanager
    async def opened(
        environment: str = "local", readiness: Sequence[ReadinessCheck] = (), **groups: Any
    ) -> AsyncIterator[AsyncClient]:
        groups = {"mail": {"url": tmp_path.as_uri()}, "jobs": {"in_process": False}, **groups}
        settings = make_settings(database_url, environment=environment, **groups)
        async with running(create_app(settings, readiness=readiness)) as client:
            client.headers["host"] = "127.0.0.1:8000"
            yield client

    return opened


async def send(directory: Path, **facts: str) -> str:
    """Send a mail and return its name."""
    mailer = make_mailer(MailSettings.model_validate({"url": directory.as_uri()}))
    context = {
        "link": "http://127.0.0.1:8000/account/set-password#token=secret",
        "name": "Ada",
        "expires_in": "a day",
        **facts,
    }
    await mailer.send("reset_password", to="ada@example.com", message_id="m", **context)
    return names_in(directory)[-1]


def names_in(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.eml"))


async def test_the_home_page_leads_on(pages: Pages) -> None:
    async with pages() as client:
        response = await client.get("/")

        assert response.headers["content-type"] == "text/html; charset=utf-8"
        for link in re.findall(r'href="([a-z]+[^:"]*)"', response.text):
            assert (await client.get(f"/{link}")).status_code == 200


async def test_the_home_page_leaves_out_what_does_not_exist(pages: Pages) -> None:
    async with pages(server={"docs": False}, mail={"url": "console:"}) as client:
        response = await client.get("/")
        mails = await client.get("/local/mails")

    assert "docs" not in response.text
    assert "mails" not in response.text
    assert mails.status_code == 404


async def test_the_home_page_says_whether_the_application_is_ready(pages: Pages) -> None:
    async with pages() as client:
        ready = await client.get("/")
    async with pages(readiness=[lambda: "the stars are not right"]) as client:
        unready = await client.get("/")

    assert "Ready." in ready.text
    assert "Not ready: the stars are not right." in unready.text
    assert unready.status_code == 200


@pytest.mark.parametrize("environment", ["test", "production"])
async def test_outside_of_local_the_home_page_names_only_the_product(pages: Pages, environment: str) -> None:
    async with pages(environment=environment) as client:
        response = await client.get("/")

    assert response.text == f"{product.NAME}\n"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


async def test_mails_are_listed_and_shown(pages: Pages, tmp_path: Path) -> None:
    names = [await send(tmp_path, link=f"http://127.0.0.1:8000/account/set-password#token={n}") for n in (1, 2)]
    async with pages() as client:
        listed = await client.get("/local/mails")
        shown = await client.get(f"/local/mails/{names[0]}")
        framed = await client.get(f"/local/mails/{names[0]}/html")

    links = [quote(name) for name in names]
    assert listed.text.index(links[1]) < listed.text.index(links[0])
    assert "ada@example.com" in listed.text
    assert 'href="http://127.0.0.1:8000/account/set-password#token=1"' in shown.text
    assert f'src="{links[0]}/html"' in shown.text
    assert 'href="http://127.0.0.1:8000/account/set-password#token=1"' in framed.text
    # The mail may be shown in a frame of the page, and cannot run scripts.
    assert framed.headers["x-frame-options"] == "SAMEORIGIN"
    assert "sandbox allow-popups" in framed.headers["content-security-policy"]
    assert "script-src" not in framed.headers["content-security-policy"]


async def test_without_mails_the_list_says_how_to_get_one(pages: Pages) -> None:
    async with pages() as client:
        response = await client.get("/local/mails")

    assert "No mail has been sent yet" in response.text


async def test_a_mail_without_html_has_no_frame(pages: Pages, tmp_path: Path) -> None:
    sender = parse_address("no-reply@example.com")
    message = Message(
        sender=sender, to="ada@example.com", subject="Plain", text="A text.", message_id="<m@example.com>"
    )
    await FileTransport(tmp_path).deliver(message)
    [name] = names_in(tmp_path)
    async with pages() as client:
        shown = await client.get(f"/local/mails/{name}")

    assert "A text." in shown.text
    assert "<iframe" not in shown.text


async def test_a_mail_cannot_change_its_page(pages: Pages, tmp_path: Path) -> None:
    link = 'http://127.0.0.1/<script>alert(1)</script>"onclick="alert(1)'
    name = await send(tmp_path, link=link)
    async with pages() as client:
        shown = await client.get(f"/local/mails/{name}")

    assert "<script" not in shown.text
    assert '"onclick' not in shown.text


@pytest.mark.parametrize("name", ["nothing", "..", ".hidden", "..%5Cother", "%00"])
async def test_other_files_are_not_shown(pages: Pages, tmp_path: Path, name: str) -> None:
    (tmp_path / ".hidden.eml").write_text("Subject: secret\n\nsecret")
    (tmp_path.parent / "other.eml").write_text("Subject: secret\n\nsecret")
    async with pages() as client:
        response = await client.get(f"/local/mails/{name}")
        listed = await client.get("/local/mails")

    assert response.status_code == 404
    assert "secret" not in response.text + listed.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example"])
async def test_mails_are_not_shown_under_a_foreign_name(pages: Pages, tmp_path: Path, host: str) -> None:
    name = await send(tmp_path)
    async with pages() as client:
        paths = ("/local/mails", f"/local/mails/{name}", f"/local/mails/{name}/html")
        responses = [await client.get(path, headers={"host": host}) for path in paths]

    assert [(one.status_code, one.json()["code"]) for one in responses] == [(403, "foreign_host")] * 3


async def test_pages_of_other_origins_cannot_read_mails(pages: Pages, tmp_path: Path) -> None:
    name = await send(tmp_path)
    async with pages(server={"cors_origins": "*"}) as client:
        paths = ("/local/mails", f"/local/mails/{name}", f"/local/mails/{name}/html")
        responses = [await client.get(path, headers={"origin": "https://evil.example"}) for path in paths]

    assert [(one.status_code, one.json()["code"]) for one in responses] == [(403, "foreign_host")] * 3


@pytest.mark.parametrize("host", ["localhost:8000", "[::1]:8000", "dev.example"])
async def test_mails_are_shown_under_the_names_of_this_machine_and_the_public_url(pages: Pages, host: str) -> None:
    async with pages(server={"public_url": "https://dev.example"}) as client:
        response = await client.get("/local/mails", headers={"host": host})

    assert response.status_code == 200


async def test_outside_of_local_there_are_no_mails(pages: Pages, tmp_path: Path) -> None:
    name = await send(tmp_path)
    async with pages(environment="test") as client:
        responses = [await client.get(f"/local/mails{path}") for path in ("", f"/{name}", f"/{name}/html")]

    assert [one.status_code for one in responses] == [404] * 3
