"""The commands, files, links, tests, log events and settings in the documents exist."""

import ast
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from app.cli import cli
from app.core.db.database import Database
from app.core.security.hashing import PasswordHasher
from app.settings import settings_model
from tests.conftest import ROOT, make_settings
from tests.factories import PASSWORD, make_user
from tests.listings import Listing, listings
from tests.servers import paste, real_server

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# The comparison quotes the paths and commands of other projects.
OURS = [document for document in DOCUMENTS if document.name != "comparison.md"]
SNIPPETS = [(document, listing) for document in DOCUMENTS for listing in listings(document)]
ADDRESS = "http://127.0.0.1:8000"
_LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)([^)#]*)(?:#([^)]+))?\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:src|tests|docs|scripts|requirements|\.ci|\.github)/[\w./-]*")
_TEST = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)
_VARIABLE = re.compile(r"\bAPP_[A-Z]+(?:__[A-Z_]+[A-Z])?\b")
OPERATIONS = sorted([*ROOT.glob("docs/operations/*.md"), ROOT / "docs" / "operations.md", ROOT / "docs" / "servers.md"])
# A log event is words in lower case. Values may follow, after a colon or in place of an ellipsis.
_EVENT = re.compile(r"([a-z]+(?:[,;]? [a-z]+)+)(?: ….*|:.*)?")
_COMMANDS = ("app", "fastapi", "make")
# PostgreSQL and PgBouncer write these.
_FOREIGN = {
    "canceling statement due to lock timeout",
    "canceling statement due to statement timeout",
    "could not extend file",
    "sorry, too many clients already",
    "unsupported startup parameter",
}


def name(document: object) -> str | None:
    return str(document.relative_to(ROOT)) if isinstance(document, Path) else None


def prose(document: Path) -> str:
    """Return the text of a document without its listings."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """Return the anchors of its headings, in the format of GitHub."""
    headings = re.findall(r"^#+ +(.*)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(document: Path) -> Iterator[list[str]]:
    """Yield the commands in the listings of a document and in its inline code."""
    shell = [listing.text for listing in listings(document) if listing.language == "bash"]
    lines = [line for text in shell for line in text.replace("\\\n", " ").splitlines()]
    for line in [*lines, *_CODE.findall(prose(document))]:
        plain = re.sub(r"\$\([^()]*\)|['\"]", "", line.partition(" # ")[0])
        for part in re.split(r"&&|[|;]", plain):
            words = shlex.split(part)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_relative_links_have_a_target(document: Path) -> None:
    for path, anchor in _LINK.findall(prose(document)):
        target = (document.parent / path).resolve() if path else document

        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("document", OURS, ids=name)
def test_files_that_are_named_exist(document: Path) -> None:
    named = {code for code in _CODE.findall(prose(document)) if _PATH.fullmatch(code)}

    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_tests_that_are_named_exist(document: Path) -> None:
    named = {code for code in _CODE.findall(prose(document)) if re.fullmatch(r"test_\w+", code)}

    assert named <= _tests()


@cache
def _tests() -> set[str]:
    """Return the names of all tests."""
    return {test for path in ROOT.glob("tests/**/test_*.py") for test in _TEST.findall(path.read_text())}


@pytest.mark.parametrize("document", OURS, ids=name)
def test_make_targets_that_are_named_exist(document: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)

    named = {words[1] for words in commands(document) if words[0] == "make" and len(words) > 1}

    assert named <= set(targets)


@pytest.mark.parametrize("document", OURS, ids=name)
def test_commands_of_the_application_that_are_named_exist(document: Path) -> None:
    for words in commands(document):
        if words[0] != "app":
            continue
        command: Any = typer.main.get_command(cli)
        arguments = words[1:]
        while arguments and (members := getattr(command, "commands", None)):
            assert arguments[0] in members, shlex.join(words)
            command = members[arguments.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in arguments if word.startswith("-") and word != "-"} <= options, (
            shlex.join(words)
        )


@pytest.mark.parametrize("document", OURS, ids=name)
def test_programs_of_the_environment_that_are_named_exist(document: Path) -> None:
    programs = [words[0] for words in commands(document) if words[0].startswith(".venv/bin/")]

    missing = [program for program in programs if not Path(sys.executable).with_name(Path(program).name).exists()]

    assert missing == []


@pytest.mark.parametrize("document", OPERATIONS, ids=name)
def test_log_events_that_are_named_exist(document: Path) -> None:
    events = {match[1] for code in _CODE.findall(prose(document)) if (match := _EVENT.fullmatch(code))}
    events = {event for event in events if event.split()[0] not in _COMMANDS} - _FOREIGN

    assert [event for event in sorted(events) if event not in _strings()] == []


@cache
def _strings() -> str:
    """Return the string constants of the program."""
    nodes = (node for path in (ROOT / "src").rglob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_settings_that_are_named_exist(document: Path) -> None:
    groups = {group: field.annotation for group, field in settings_model().model_fields.items()}
    # The pages name settings of features that are not part of this repository.
    known = {f"APP_{group.upper()}" for group in groups} | {"APP_SECRETS_DIR", "APP_GREETINGS__WORD", "APP_NOTES"}
    for group, annotation in groups.items():
        members: dict[str, object] = getattr(annotation, "model_fields", {})
        known |= {f"APP_{group}__{member}".upper() for member in members}

    assert set(_VARIABLE.findall(document.read_text())) <= known


@pytest.mark.parametrize(
    "listing", [listing for _, listing in SNIPPETS if listing.language == "python"], ids=lambda one: one.path
)
def test_python_listings_can_be_parsed(listing: Listing) -> None:
    ast.parse(listing.text)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("document", "listing"),
    # `tests/dev/test_generated_features.py` runs the lines for a generated feature.
    [(document, one) for document, one in SNIPPETS if re.search(r"\bcurl\b", one.text) and one.path is None],
    ids=name,
)
async def test_curl_lines_work_as_pasted(
    hasher: PasswordHasher, clone_url: str, document: Path, listing: Listing
) -> None:
    assert ADDRESS in listing.text, document
    database = Database(make_settings(clone_url).database)
    async with database.begin() as session:
        await make_user(session, hasher, email="admin@example.com", role="admin")
    await database.dispose()

    async with real_server(clone_url) as server:
        output = await paste(listing.text.replace(ADDRESS, server.base_url), PASSWORD=PASSWORD)

    assert output.startswith("{")


def test_the_readme_has_a_curl_listing() -> None:
    assert any(document.name == "README.md" and "curl" in listing.text for document, listing in SNIPPETS)
