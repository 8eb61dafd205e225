"""`docs/upgrading.md`: its table of moved modules, and the scripts that rewrite code of 0.1.0."""

import pkgutil

import pytest
from scripts.upgrade_code import rewrite as rewrite_code
from scripts.upgrade_imports import leftovers, moved_modules, rewrite

MOVED = moved_modules()


@pytest.mark.parametrize("place", sorted(set(MOVED.values())))
def test_everything_in_the_table_exists(place: str) -> None:
    assert pkgutil.resolve_name(place)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from app.core.keyset import Order, Position", "from app.core.db.keyset import Order, Position"),
        ("from app.core import crud", "from app.core.db import crud"),
        ("from app.core import statements", "from app.core.db import query_log as statements"),
        (
            "from app.core import crud as rows, errors",
            "from app.core.db import crud as rows\nfrom app.core import errors",
        ),
        (
            "from app.core.fields import (\n    Answer,\n    Payload,\n)",
            "from app.core.schemas.fields import Answer, Payload",
        ),
        (
            "    from app.core.security import PasswordHasher",
            "    from app.core.security.hashing import PasswordHasher",
        ),
        (
            "from app.core.metrics import Tally, Reading",
            "from app.core.observability.metrics import Counter as Tally, Reading",
        ),
        (
            "from app.users.router import UserId, router",
            "from app.users.dependencies import UserId\nfrom app.users.router import router",
        ),
        ("from app.core.security import hashing", "from app.core.security import hashing"),
        ("from app.core.errors import NotFoundError", "from app.core.errors import NotFoundError"),
        ("from app.core.crud import page  # A reason.", "from app.core.crud import page  # A reason."),
    ],
)
def test_imports_of_moved_modules_are_rewritten(before: str, after: str) -> None:
    assert rewrite(f"import re\n\n{before}\n", MOVED) == f"import re\n\n{after}\n"
    assert rewrite(f"{after}\n", MOVED) == f"{after}\n"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('patch("app.core.security.bcrypt.checkpw", never)', ["app.core.security.bcrypt.checkpw"]),
        ('patch("app.audit.jobs.BATCH", 5)', ["app.audit.jobs.BATCH"]),
        ("from app.core.crud import page  # A reason.", ["app.core.crud"]),
        ("import app.core.keyset as keyset", ["app.core.keyset"]),
        ('patch("app.core.security.hashing.bcrypt.checkpw", never)', []),
        ("from app.core.db.crud import page  # A reason.", []),
        ("from app.server import serve", []),
        ('"app.example.com"', []),
    ],
)
def test_mentions_of_moved_modules_that_are_left_are_named(line: str, found: list[str]) -> None:
    assert list(leftovers(f"\n{line}\n", MOVED)) == [(2, name) for name in found]


CODE = [
    (
        "        note_id: NoteId, if_none_match: IfNoneMatch = None",
        "        note_id: NoteId, if_none_match: IfNoneMatch",
    ),
    ("    versions = acceptable_versions(if_match)", "    versions = if_match.versions"),
    (
        """\
@router.get("")
async def read(pager: PagerDep, query: Query) -> dict[str, Any]:
    position = pager.position(query, service.order_of(query))
    return pager.page(query, *await service.list_page(session, query, position))
""",
        """\
@router.get("")
async def read(pager: PagerDep, query: Query) -> dict[str, Any]:
    return await pager.list(query, service.order_of(query), lambda page: service.list_page(session, query, page))
""",
    ),
    (
        """\
from app.core.http.etags import IfNoneMatch, etag

@router.post("")
async def create(request: Request, session: SessionDep, response: Response, payload: NoteCreate) -> Note:
    note = await service.create(session, payload)
    response.headers["Location"] = f"{request.scope['path']}/{note.id}"
    response.headers["ETag"] = etag(note.version)
    return note

@router.get("/{note_id}")
async def read(session: SessionDep, response: Response, if_none_match: IfNoneMatch = None) -> Note | Response:
    note = await service.get(session)
    if is_current(if_none_match, note.version):
        return not_modified(note.version)
    response.headers["ETag"] = etag(note.version)
    return note

@router.patch("/{note_id}")
async def update(session: SessionDep, response: Response, if_match: IfMatch = None) -> Note:
    note = await service.update(session)
    response.headers["ETag"] = etag(note.version)
    return note

@router.get("/{note_id}/text")
async def text(response: Response) -> str:
    response.headers["Language"] = "en"
    return "text"
""",
        """\
from app.core.http.etags import IfNoneMatch, etag, CreatedDep

@router.post("")
async def create(session: SessionDep, created: CreatedDep, payload: NoteCreate) -> Note:
    note = await service.create(session, payload)
    return created.tag(note)

@router.get("/{note_id}")
async def read(session: SessionDep, if_none_match: IfNoneMatch) -> Note:
    note = await service.get(session)
    return if_none_match.tag(note)

@router.patch("/{note_id}")
async def update(session: SessionDep, if_match: IfMatch) -> Note:
    note = await service.update(session)
    return if_match.tag(note)

@router.get("/{note_id}/text")
async def text(response: Response) -> str:
    response.headers["Language"] = "en"
    return "text"
""",
    ),
    (
        """\
async def page(
    session: ReadSession, order: Order, position: Position | None, limit: int
) -> tuple[Sequence[Row[Any]], Position | None]:
    return await crud.page(session, _LIST, order, position, limit=limit)
""",
        """\
async def page(
    session: ReadSession, request: PageRequest
) -> PageRows:
    return await crud.page(session, _LIST, request)
""",
    ),
    (
        """\
from app.core.db.keyset import Order, Position

async def list_page(
    session: ReadSession, query: NoteQuery, position: Position | None
) -> tuple[Sequence[Row[Any]], Position | None]:
    return await crud.page(session, order_of(query), position, query.limit)
""",
        """\
from app.core.db.keyset import Order, Position, PageRequest, PageRows

async def list_page(
    session: ReadSession, query: NoteQuery, page: PageRequest
) -> PageRows:
    return await crud.page(session, page)
""",
    ),
    (
        """\
from app.core.db.database import Base, CreatedAt

class Tag(Base):
    id: Mapped[PrimaryKey]
    created_at: Mapped[CreatedAt]

class Note(Base):
    id: Mapped[PrimaryKey]
    title: Mapped[str]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[UpdatedAt]
    version: Mapped[Version]
""",
        """\
from app.core.db.database import Base, CreatedAt, VersionedBase

class Tag(Base):
    id: Mapped[PrimaryKey]
    created_at: Mapped[CreatedAt]

class Note(VersionedBase):
    title: Mapped[str]
""",
    ),
]


@pytest.mark.parametrize(("before", "after"), CODE)
def test_code_in_the_form_of_the_first_guide_is_rewritten(before: str, after: str) -> None:
    assert rewrite_code(before) == after
    assert rewrite_code(after) == after
