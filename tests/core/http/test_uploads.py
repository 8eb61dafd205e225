"""Operations that receive files."""

import asyncio
import errno
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import pytest
from fastapi import BackgroundTasks, Depends, File, Form, Request, Security, UploadFile
from httpx2 import AsyncClient
from pydantic import Field
from sqlalchemy import text

from app.core.db.database import Database
from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import SessionDep
from app.core.schemas.fields import FormPayload, Payload, ShortText
from tests.aftermath import assert_problem
from tests.conftest import make_settings
from tests.core.applications import application, serving, token
from tests.volume import plain

LARGE = 300_000


class Titled(Payload):
    file: UploadFile
    title: ShortText
    label: list[ShortText] = Field(default=[])


class Loose(FormPayload):
    file: UploadFile
    title: ShortText = "none"


router = routing.router()
own = public | routing.options(max_body_size=10_000_000)


async def described(file: UploadFile) -> Any:
    content = await file.read()
    return [file.filename, file.content_type, file.size, len(content), sum(content) % 251]


@router.post("/one", openapi_extra=own)
async def take_one(file: UploadFile) -> Any:
    return await described(file)


@router.post("/limited", openapi_extra=public)
async def take_limited(file: UploadFile) -> Any:
    return await described(file)


@router.post("/optional", openapi_extra=own)
async def take_optional(file: UploadFile | None = None, title: Annotated[str, Form()] = "none") -> Any:
    return [file and await described(file), title]


@router.post("/many", openapi_extra=own)
async def take_many(files: list[UploadFile], tag: Annotated[list[str], Form()], title: Annotated[str, Form()]) -> Any:
    return [[await described(file) for file in files], tag, title]


@router.post("/bytes", openapi_extra=own)
async def take_bytes(content: Annotated[bytes, File(alias="data")]) -> int:
    return len(content)


@router.post("/model", openapi_extra=own)
async def take_model(form: Annotated[Titled, File()]) -> Any:
    return [await described(form.file), form.title, form.label]


@router.post("/loose", openapi_extra=own)
async def take_loose(form: Annotated[Loose, Form(media_type="multipart/form-data")]) -> Any:
    return [await described(form.file), form.title]


@router.post("/fields", openapi_extra=own)
async def take_fields(title: Annotated[str, Form(media_type="multipart/form-data")]) -> str:
    return title


async def sized(file: UploadFile) -> int:
    return file.size or 0


@router.post("/dependency", openapi_extra=own)
async def take_by_dependency(size: Annotated[int, Depends(sized)], title: Annotated[str, Form()]) -> Any:
    return [size, title]


@router.post("/few", openapi_extra=own, form_limits={"max_files": 1, "max_fields": 2, "max_part_size": 5})
async def take_few(files: list[UploadFile], tag: Annotated[list[str] | None, Form()] = None) -> Any:
    return [len(files), tag]


@router.post("/failing", openapi_extra=own)
async def take_and_fail(file: UploadFile) -> None:
    await file.read()
    message = "no"
    raise RuntimeError(message)


@router.post("/waiting", openapi_extra=own)
async def take_and_wait(file: UploadFile) -> None:
    await file.read()
    await asyncio.Event().wait()


@router.post("/later", openapi_extra=own)
async def take_for_later(file: UploadFile, tasks: BackgroundTasks, request: Request) -> None:
    async def read() -> None:
        request.app.state.later = len(await file.read())

    tasks.add_task(read)


@router.post("/stored")
async def take_and_store(_caller: Annotated[str, Security(token)], file: UploadFile, session: SessionDep) -> int:
    await session.execute(text("INSERT INTO uploads VALUES (:size)"), {"size": file.size})
    return file.size or 0


@pytest.fixture
async def client() -> Any:
    async with serving(router) as client:
        yield client


def open_temporary_files() -> list[str]:
    """Return the temporary files that this process has open. They have no name."""
    gc.collect()
    folder = tempfile.gettempdir()
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return [one for one in targets if one.startswith(folder) and one.endswith("(deleted)")]


@pytest.fixture(autouse=True)
def _no_file_is_left() -> Iterator[None]:
    before = open_temporary_files()
    yield
    assert open_temporary_files() == before


def part(size: int, name: str = "a.bin") -> tuple[str, bytes, str]:
    return (name, b"\r\n--" * (size // 4) + b"x" * (size % 4), "application/x-test")


def expected(size: int, name: str = "a.bin") -> list[Any]:
    return [name, "application/x-test", size, size, sum(part(size)[1]) % 251]


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, LARGE])
async def test_a_file_of_any_size_arrives_complete(client: AsyncClient, size: int) -> None:
    response = await client.post("/one", files={"file": part(size)})

    assert (response.status_code, response.json()) == (200, expected(size)), response.text


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
async def test_a_form_may_be_split_anywhere(client: AsyncClient, chunk: int) -> None:
    request = client.build_request(
        "POST", "/many", files=[("files", part(200)), ("files", part(3))], data={"tag": ["ä", "b"], "title": "x"}
    )
    content = request.read()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), chunk):
            yield content[start : start + chunk]

    headers = {"Content-Type": request.headers["content-type"]}
    response = await client.post("/many", content=chunks(), headers=headers)

    assert response.json() == [[expected(200), expected(3)], ["ä", "b"], "x"]


async def test_files_and_fields_are_read_by_every_kind_of_declaration(client: AsyncClient) -> None:
    file = {"file": part(9)}

    assert (await client.post("/optional", files=file)).json() == [expected(9), "none"]
    assert (await client.post("/optional", files={"title": (None, "x")})).json() == [None, "x"]
    assert (await client.post("/bytes", files={"data": part(9)})).json() == 9
    model = await client.post("/model", files=file, data={"title": "x", "label": ["a", "b"]})
    assert model.json() == [expected(9), "x", ["a", "b"]]
    assert (await client.post("/loose", files=file, data={"other": "x"})).json() == [expected(9), "none"]
    assert (await client.post("/fields", files={"title": (None, "x")})).json() == "x"
    assert (await client.post("/dependency", files=file, data={"title": "x"})).json() == [9, "x"]


async def test_an_input_of_a_page_without_a_file_counts_as_missing(client: AsyncClient) -> None:
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n%b\r\n--b--\r\n'

    empty = await client.post("/optional", content=body % b"", headers=boundary)
    nameless = await client.post("/optional", content=body % b"x", headers=boundary)

    assert empty.json() == [None, "none"]
    assert [(one["pointer"], one["code"]) for one in nameless.json()["errors"]] == [("#/file", "file_name")]


@pytest.mark.parametrize("name", ["a.bin", "Ünïcödé 名前.txt", "a b.txt", "%2e%2e", "a" * 255, 'a"b', "..."])
async def test_a_file_name_arrives_as_it_was_sent(client: AsyncClient, name: str) -> None:
    quoted = name.replace('"', '\\"').encode()
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\nx\r\n--b--' % quoted
    response = await client.post("/one", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})

    assert response.json()[0] == name


async def test_the_server_reads_a_form_of_its_boundary_only(client: AsyncClient) -> None:
    body = b'--a b\r\nContent-Disposition: form-data; name="title"\r\n\r\n--c\r\n--a b--'
    headers = {"Content-Type": 'multipart/form-data; charset=UTF-8; boundary="a b"'}

    assert (await client.post("/fields", content=body, headers=headers)).json() == "--c"


@pytest.mark.parametrize(
    ("path", "files", "data", "pointer", "code"),
    [
        ("one", {"other": part(1)}, {}, "#/other", "extra_forbidden"),
        ("one", {"file": part(1)}, {"title": "x"}, "#/title", "extra_forbidden"),
        ("loose", {"file": part(1), "other": part(1)}, {}, "#/other", "extra_forbidden"),
        ("model", {"file": part(1)}, {"title": "x", "other": "x"}, "#/other", "extra_forbidden"),
        ("one", [("file", part(1)), ("file", part(1))], {}, "#/file", "duplicate_parameter"),
        ("optional", {}, {"title": ["x", "x"]}, "#/title", "duplicate_parameter"),
        ("optional", {"title": part(1)}, {}, "#/title", "file_unexpected"),
        ("optional", {"file": (None, "x")}, {}, "#/file", "file_expected"),
        ("model", {"file": part(1)}, {"title": " "}, "#/title", "blank"),
        ("model", {"file": part(1)}, {}, "#/title", "missing"),
        ("optional", {}, {"title": "x" * 65_537}, "#/title", "too_long"),
        ("few", [("files", part(1))] * 2, {}, "#/files", "too_many_files"),
        ("few", [("files", part(1))], {"tag": ["a", "b", "c"]}, "#/tag", "too_many_parts"),
        ("few", [("files", part(1))], {"tag": "123456"}, "#/tag", "too_long"),
        ("many", [("files", part(1))] * 21, {}, "#/files", "too_many_files"),
    ],
)
async def test_a_wrong_part_is_named(
    client: AsyncClient, path: str, files: Any, data: dict[str, Any], pointer: str, code: str
) -> None:
    given = [*(files.items() if isinstance(files, dict) else files)]
    for name, values in data.items():
        given += [(name, (None, value)) for value in (values if isinstance(values, list) else [values])]

    response = await client.post(f"/{path}", files=given)

    assert_problem(response, 422, "validation_error", pointer)
    assert [one["code"] for one in response.json()["errors"]] == [code]


async def test_limits_of_fastapi_change_those_of_one_operation(client: AsyncClient) -> None:
    response = await client.post("/few", files=[("files", part(1)), ("tag", (None, "12345")), ("tag", (None, ""))])

    assert response.json() == [1, ["12345", ""]]


async def test_a_file_is_limited_by_the_size_of_the_body(client: AsyncClient) -> None:
    for size, status in ((3500, 200), (4096, 413)):
        assert (await client.post("/limited", files={"file": part(size)})).status_code == status


async def test_a_file_is_read_by_background_tasks_and_closed_then() -> None:
    app = application(router)
    async with serving(app) as client:
        assert (await client.post("/later", files={"file": part(LARGE)})).status_code == 200

    assert app.state.later == LARGE


@pytest.mark.parametrize(
    ("path", "content_type", "status"),
    [
        ("one", "application/json", 415),
        ("one", "application/x-www-form-urlencoded", 415),
        ("fields", "multipart/mixed; boundary=b", 415),
    ],
)
async def test_another_media_type_is_refused(client: AsyncClient, path: str, content_type: str, status: int) -> None:
    response = await client.post(f"/{path}", content=b"--b--", headers={"Content-Type": content_type})

    assert response.status_code == status


async def test_a_file_of_a_failed_request_is_closed(client: AsyncClient) -> None:
    response = await client.post("/failing", files={"file": part(LARGE)})

    assert response.status_code == 500


async def test_a_full_disk_is_the_fault_of_the_server(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)

    response = await client.post("/one", files={"file": part(LARGE)})

    assert_problem(response, 503, "temporary_storage_full")


async def test_other_faults_of_the_disk_are_not_hidden(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)

    assert (await client.post("/one", files={"file": part(LARGE)})).status_code == 500


@pytest.mark.parametrize("path", ["waiting", "one"])
async def test_a_file_of_a_cancelled_request_is_closed(path: str) -> None:
    app = application(router, max_body_size=10_000_000)
    complete = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * LARGE
        complete.set()
        if path == "one":
            await asyncio.Event().wait()
        yield b"\r\n--b--"

    async with serving(app) as client:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        task = asyncio.ensure_future(client.post(f"/{path}", content=body(), headers=headers))
        await complete.wait()
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_write_that_is_cancelled_ends_before_its_file_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tempfile.TemporaryFile
    started: list[Any] = []

    def slow(*arguments: Any, **options: Any) -> Any:
        started.append(real(*arguments, **options))
        time.sleep(0.3)
        return started[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", slow)
    async with serving(router) as client:
        task = asyncio.ensure_future(client.post("/one", files={"file": part(LARGE)}))
        while not started:  # noqa: ASYNC110  # A thread sets it.
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert [file.closed for file in started] == [True]


async def test_writes_do_not_block_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tempfile.TemporaryFile

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return real(*arguments, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", slow)
    async with serving(router) as client:
        task = asyncio.ensure_future(client.post("/one", files={"file": part(LARGE)}))
        await asyncio.sleep(0.1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await client.post("/fields", files={"title": (None, "x")})
        waited = loop.time() - began

        assert not task.done()
        assert waited < 0.3
        assert (await task).status_code == 200


async def test_the_transaction_of_an_upload_is_committed(clone_url: str) -> None:
    database = Database(make_settings(clone_url).database)
    watcher = await asyncpg.connect(plain(clone_url))
    await watcher.execute("CREATE TABLE uploads (size bigint)")

    async with serving(router, database, max_body_size=10_000_000) as client:
        response = await client.post("/stored", files={"file": part(LARGE)}, headers={"Authorization": "Bearer "})

    assert response.json() == LARGE
    assert await watcher.fetchval("SELECT size FROM uploads") == LARGE
    await watcher.close()
    await database.dispose()


def test_the_document_describes_the_form() -> None:
    paths = application(router).openapi()["paths"]

    for path in ("one", "model", "loose", "fields", "many"):
        assert list(paths[f"/{path}"]["post"]["requestBody"]["content"]) == ["multipart/form-data"], path
    responses = paths["/one"]["post"]["responses"]
    assert {"400", "413", "415", "422", "503"} <= set(responses)
    codes = {
        code
        for one in responses.values()
        for code in one.get("content", {}).get("application/problem+json", {}).get("examples", ())
    }
    assert {"malformed_form", "unsupported_part", "temporary_storage_full"} <= codes


def test_a_file_in_a_form_without_files_is_a_mistake() -> None:
    async def take(form: Annotated[Titled, Form()]) -> None: ...

    with pytest.raises(ValueError, match="multipart/form-data"):
        routing.router().post("/x", openapi_extra=public)(take)


def test_a_closed_model_beside_other_fields_is_a_mistake() -> None:
    class Title(Payload):
        title: ShortText

    async def take(file: UploadFile, form: Annotated[Title, Form()]) -> None: ...

    with pytest.raises(ValueError, match="into the model"):
        routing.router().post("/x", openapi_extra=public)(take)
