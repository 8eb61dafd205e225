import json
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from fastapi import File, Form, Query, UploadFile
from httpx2 import AsyncClient
from pydantic import BaseModel, Field, Json, SecretStr, create_model

from app.core.db.database import Database
from app.core.http import routing
from app.core.http.access import public
from app.core.http.openapi import DocumentedAPI
from app.core.schemas.fields import FormPayload, Omittable, Payload, ShortText
from app.core.security.hashing import PasswordHasher
from app.main import create_app
from tests.conftest import make_settings, running
from tests.core.applications import serving
from tests.core.browser import PROGRAM, browsing
from tests.factories import PASSWORD, make_user
from tests.servers import real_server

PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def document() -> Any:
    """The OpenAPI document of the whole application."""
    return create_app(make_settings("postgresql://nobody@127.0.0.1:1/none")).openapi()


def operations(document: Any) -> list[tuple[str, Any]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


# The document


def test_every_operation_id_is_unique_and_a_valid_name(document: Any) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]

    assert len(ids) == len(set(ids)) > 3
    assert [one for one in ids if not re.fullmatch(r"[a-z]+(_[a-z]+)*", one)] == []


def test_every_operation_has_a_sentence_as_summary_and_a_tag(document: Any) -> None:
    incomplete = [
        name
        for name, operation in operations(document)
        if not operation["summary"][:1].isupper() or " " not in operation["summary"] or not operation.get("tags")
    ]

    assert incomplete == []


def test_every_error_of_every_operation_is_a_problem_with_examples(document: Any) -> None:
    for name, operation in operations(document):
        errors = {status: response for status, response in operation["responses"].items() if status >= "400"}
        assert {"400", "422", "500", "503"} <= set(errors), name
        for response in errors.values():
            (media_type,) = response["content"]
            assert media_type == PROBLEM, name
            assert response["content"][PROBLEM]["schema"] == {"$ref": "#/components/schemas/Problem"}, name
            assert response["content"][PROBLEM]["examples"], name


def test_every_operation_with_a_body_declares_the_errors_of_body_parsing(document: Any) -> None:
    with_body = [(name, operation) for name, operation in operations(document) if "requestBody" in operation]

    assert with_body
    assert [name for name, operation in with_body if not {"413", "415"} <= set(operation["responses"])] == []


def test_every_operation_that_needs_a_login_declares_401(document: Any) -> None:
    guarded = [(name, operation) for name, operation in operations(document) if operation.get("security")]

    assert guarded
    assert [name for name, operation in guarded if "401" not in operation["responses"]] == []


def test_examples_of_errors_are_valid_problem_documents(document: Any) -> None:
    required = set(document["components"]["schemas"]["Problem"]["required"])
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            for code, example in response.get("content", {}).get(PROBLEM, {}).get("examples", {}).items():
                assert required <= set(example["value"]), name
                assert (example["value"]["code"], str(example["value"]["status"])) == (code, status), name


def test_every_reference_resolves(document: Any) -> None:
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))

    assert references <= set(schemas)
    assert {"Problem", "FieldProblem"} <= references


def test_the_mark_of_public_operations_is_not_published(document: Any) -> None:
    assert "x-public" not in json.dumps(document)


def test_the_document_is_deterministic() -> None:
    first, second = (create_app(make_settings("postgresql://nobody@127.0.0.1:1/none")) for _ in range(2))

    assert json.dumps(first.openapi()) == json.dumps(first.openapi()) == json.dumps(second.openapi())


# The page and its assets


async def test_the_document_is_served(client: AsyncClient, document: Any) -> None:
    response = await client.get("/openapi.json")

    assert response.headers["content-type"] == "application/json"
    assert set(response.json()["paths"]) == set(document["paths"])


async def test_the_page_loads_nothing_from_other_origins(client: AsyncClient) -> None:
    response = await client.get("/docs")

    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "http" not in policy
    assert re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert [
        address
        for address in re.findall(r'(?:src|href)="([^"]+)"', response.text)
        if ":" in address or address[0] == "/"
    ] == []
    assert "<script>" not in response.text


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("swagger-ui.css", "text/css; charset=utf-8"),
        ("favicon.png", "image/png"),
        ("start.js", "text/javascript; charset=utf-8"),
    ],
)
async def test_the_assets_are_served_and_cacheable(client: AsyncClient, name: str, media_type: str) -> None:
    response = await client.get(f"/docs/{name}")

    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert response.headers["cache-control"] == "public, max-age=86400"
    assert len(response.content) > 100


@pytest.mark.parametrize("name", ["x.js", "redoc.standalone.js", "..%2F__init__.py", "%2E%2E", "%2Fetc%2Fpasswd", ""])
async def test_no_other_file_is_served(client: AsyncClient, name: str) -> None:
    response = await client.get(f"/docs/{name}")

    assert response.status_code == 404
    assert response.headers["content-type"] == PROBLEM


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/docs/swagger-ui.css", "/docs/start.js", "/redoc"])
async def test_the_documentation_can_be_switched_off(database: Database, path: str) -> None:
    settings = make_settings("postgresql://nobody@127.0.0.1:1/none", server={"docs": False})
    async with running(create_app(settings, database)) as client:
        response = await client.get(path)

    assert response.status_code == 404
    assert response.json()["code"] == "not_found"


# In a browser


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
async def test_the_page_logs_in_and_calls_the_api_in_a_browser(
    clone_url: str, tmp_path: Path, hasher: PasswordHasher, document: Any
) -> None:
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        user = await make_user(session, hasher, email="ada@example.com")
    await database.dispose()

    async with real_server(clone_url, APP_ENVIRONMENT="test") as server, browsing(tmp_path) as page:
        await page.open(f"{server.base_url}/docs")
        await page.wait_for("document.querySelectorAll('.opblock').length > 0")
        shown = await page.run("document.querySelectorAll('.opblock').length")
        await page.click(".auth-wrapper .authorize")
        await page.fill(".modal-ux input[name=username], .modal-ux #oauth_username", user.email)
        await page.fill(".modal-ux input[name=password], .modal-ux #oauth_password", PASSWORD)
        await page.click(".modal-ux .auth-btn-wrapper .authorize")
        await page.wait_for("[...document.querySelectorAll('.modal-ux button')].some(b => b.textContent === 'Logout')")
        await page.click(".modal-ux .btn-done")
        await page.click("#operations-users-read_me .opblock-summary-control")
        await page.click("#operations-users-read_me .try-out__btn")
        await page.click("#operations-users-read_me .execute")
        await page.wait_for("document.querySelector('#operations-users-read_me .live-responses-table')")
        row = "document.querySelector('#operations-users-read_me .live-responses-table tbody')"
        status = await page.run(f"{row}.querySelector('.response-col_status').innerText")
        body = await page.run(f"{row}.querySelector('.highlight-code').innerText")

    assert shown == len(operations(document))
    assert status.split()[0] == "200"
    assert user.email in body
    assert page.complaints == []
    elsewhere = [
        url for url in page.requests if not url.startswith(f"{server.base_url}/") and urlsplit(url).scheme != "data"
    ]
    assert elsewhere == []
    assert f"{server.base_url}/api/v1/users/me" in page.requests


# Members and parameters of any type


class Colour(Enum):
    RED = "red"


class Inner(BaseModel):
    number: int


TYPES: list[Any] = [
    *(bool, int, float, str, bytes, Decimal, date, datetime, time, timedelta, UUID, Colour, Inner, SecretStr, Any),
    *(list[int], set[str], tuple[int, str], dict[str, Decimal], list[Inner], Json[int], Literal["a", 1], ShortText),
    *(int | str, Inner | Colour, Decimal | None, list[Decimal | None], Annotated[int, Field(ge=1)], None),
]


@pytest.mark.parametrize("kind", TYPES, ids=range(len(TYPES)))
async def test_an_omittable_member_of_any_type_is_never_null(kind: Any) -> None:
    router = routing.router()
    payload = create_model("Changed", __base__=Payload, member=(Omittable[kind], None))  # type: ignore[misc]  # mypy takes the alias for a class.

    async def change(body: Any) -> None: ...

    change.__annotations__["body"] = payload
    router.patch("/things", openapi_extra=public)(change)
    async with serving(router) as client:
        document = (await client.get("/openapi.json")).json()
        refused = await client.patch("/things", json={"member": None})

    member = document["components"]["schemas"]["Changed"]["properties"]["member"]
    assert {"type": "null"} not in member.get("anyOf", ())
    assert "default" not in member
    assert refused.json()["errors"][0]["code"] == "null"


@pytest.mark.parametrize("kind", [Decimal, int | str, Literal[-1, 1], Literal["-a", "a"], Colour, date], ids=str)
async def test_an_optional_parameter_of_any_type_is_never_null(kind: Any) -> None:
    router = routing.router()

    async def read(member: Any = None) -> None: ...

    read.__annotations__["member"] = kind | None
    router.get("/things", openapi_extra=public)(read)
    async with serving(router) as client:
        document = (await client.get("/openapi.json")).json()

    (parameter,) = document["paths"]["/things"]["get"]["parameters"]
    assert {"type": "null"} not in parameter["schema"].get("anyOf", ())


def test_the_options_of_the_framework_for_the_document_have_an_effect() -> None:
    app = DocumentedAPI(
        servers=[{"url": "https://api.example.com"}],
        contact={"name": "Ada"},
        license_info={"name": "MIT"},
        openapi_external_docs={"url": "https://docs.example.com/"},
    )

    @app.webhooks.post("paid")
    async def paid() -> None:
        """Announce a payment."""

    document = app.openapi()

    assert document["servers"] == [{"url": "https://api.example.com"}]
    assert (document["info"]["contact"], document["info"]["license"]) == ({"name": "Ada"}, {"name": "MIT"})
    assert document["externalDocs"] == {"url": "https://docs.example.com/"}
    assert "paid" in document["webhooks"]


def test_a_route_that_is_added_later_is_in_the_document() -> None:
    app = DocumentedAPI()
    before = app.openapi()["paths"]

    async def late(name: Annotated[str | None, Query()] = None) -> None:
        """Come late."""
        del name

    app.add_api_route("/late", late)
    (parameter,) = app.openapi()["paths"]["/late"]["get"]["parameters"]

    assert before == {}
    assert parameter["schema"] == {"type": "string", "title": "Name"}
    assert app.openapi() is app.openapi()


class FirstForm(FormPayload):
    name: str | None = None


class SecondForm(FormPayload):
    title: str


@pytest.mark.parametrize("form", [FirstForm | None, FirstForm | SecondForm])
async def test_an_operation_with_optional_or_several_forms_is_documented(form: Any) -> None:
    app = DocumentedAPI()

    async def read(payload: Any = None) -> None:
        """Read a form."""
        del payload

    read.__annotations__["payload"] = Annotated[form, Form()]
    app.add_api_route("/forms", read, methods=["POST"])

    document = app.openapi()

    assert "/forms" in document["paths"]
    assert document["components"]["schemas"]["FirstForm"]["properties"]["name"] == {"type": "string", "title": "Name"}


def test_a_parameter_without_a_schema_of_its_own_is_kept() -> None:
    app = DocumentedAPI()
    extra = {"parameters": [{"$ref": "#/components/parameters/shared"}]}

    async def read() -> None:
        """Read."""

    app.add_api_route("/extra", read, openapi_extra=extra)

    assert app.openapi()["paths"]["/extra"]["get"]["parameters"] == extra["parameters"]


class Files(BaseModel):
    one: UploadFile
    perhaps: UploadFile | None = None
    many: list[UploadFile]
    title: str


async def read_model(form: Annotated[Files, File()]) -> None:
    """Read the files of a model."""
    del form


async def read_parameters(
    one: UploadFile,
    many: list[UploadFile],
    title: Annotated[str, Form()],
    perhaps: Annotated[UploadFile | None, File()] = None,
) -> None:
    """Read the files of parameters."""
    del one, many, title, perhaps


@pytest.mark.parametrize("read", [read_model, read_parameters])
def test_files_of_a_form_are_binary(read: Any) -> None:
    app = DocumentedAPI()
    app.add_api_route("/files", read, methods=["POST"])

    document = app.openapi()

    content = document["paths"]["/files"]["post"]["requestBody"]["content"]["multipart/form-data"]
    form = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]["properties"]
    file = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
    assert (form["one"], form["many"]["items"]) == (file | {"title": "One"}, file)
    assert file in form["perhaps"]["anyOf"]
    assert form["title"] == {"type": "string", "title": "Title"}
