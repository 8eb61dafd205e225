"""Generates the pages of the documentation that describe the code, so that they cannot become outdated."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.core.config import Settings
from app.dev import security
from app.dev.generator import edit
from app.dev.generator.parse import parse
from app.dev.generator.render import render
from app.dev.generator.repository import Repository, Revision
from app.dev.markdown import cell, setting, table
from app.migrations import revisions
from app.settings import variables

ROOT = Path(__file__).resolve().parents[3]
_GUIDE = Path("docs/adding-a-feature.md")
_GUIDED = parse("notes", "text:text", targets=Repository(ROOT).target)
_LISTING = re.compile(r'^(```(?:python|diff) title="([^"]+)"\n)(.*?)^```$', re.MULTILINE | re.DOTALL)
# Defaults that depend on the machine. The page must be the same on every machine.
_COMPUTED = {"APP_AUTH__HASH_THREADS": "one per usable core"}
_HEADING = """# Settings

Each setting is an environment variable. `make docs` generates this page from `src/app/core/config` and the `settings.py` of each feature.

- `DATABASE_URL` and `PORT`, which many platforms set, are accepted too. `APP_DATABASE__URL` and `APP_SERVER__PORT` take precedence.
- A setting can also be a file with the name of the variable, in the directory `APP_SECRETS_DIR`. A variable takes precedence.
- Durations are a number of seconds, or a number with a unit: `90`, `500ms`, `30s`, `10m`, `24h`, `14d`.
- An empty variable counts as unset. An unknown variable that begins with `APP_` stops the start, except those that Kubernetes
  sets for a service called `app` (`…_SERVICE_HOST`, `…_PORT=tcp://…`).
- The variables of libpq (`PGHOST`, `PGSSLMODE`, `PGPASSWORD`, `PGSERVICE`, …) have no effect. Only the settings select the
  database and the connection options.
"""


def configuration() -> str:
    groups: dict[type[BaseModel], list[tuple[str, ...]]] = {}
    for variable, name, model in variables():
        field = model.model_fields[name]
        row = (f"`{variable}`", _default(variable, field), cell(field.description))
        groups.setdefault(model, []).append(row)
    sections = (
        f"## {_title(model)}\n\n{table('variable | default | description', rows)}" for model, rows in groups.items()
    )
    return "\n\n".join([_HEADING.strip(), *sections]) + "\n"


def guide() -> str:
    """Return the guide to a new feature. Its listings are the output of `make feature`, and its migration follows the newest one."""
    text = (ROOT / _GUIDE).read_text()
    (own,) = re.findall(r'^revision = "(\d{8}_\w+)"$', text, flags=re.MULTILINE)
    if own in revisions.known() or (ROOT / "src" / "app" / _GUIDED.name).exists():
        # The repository already contains the feature of the guide.
        return text
    newest = revisions.head()
    # The date of the newest migration keeps the dates in order, and the page does not change from day to day.
    date = newest[:8] if newest[:8].isdigit() else own[:8]
    revision = Revision(f"{date}_{_GUIDED.name}", newest)
    files = render(ROOT, _GUIDED, revision)
    return _LISTING.sub(partial(_filled, files), text.replace(own, revision.name))


def _filled(files: Mapping[str, str], listing: re.Match[str]) -> str:
    """Return a listing of the guide with the text of the file in its title."""
    start, path, text = listing.groups()
    if path == edit.FILE:
        text = f'     "{edit.listed((ROOT / path).read_text())[-1]}",\n+    "{_GUIDED.name}",\n'
    return f"{start}{files.get(path, text)}```"


DOCUMENTS: Mapping[Path, Callable[[], str]] = {
    _GUIDE: guide,
    Path("docs/configuration.md"): configuration,
    Path("docs/security/asvs.md"): security.report,
    Path("docs/security/facts.md"): security.facts,
}


def write(root: Path = ROOT) -> None:
    for path, content in DOCUMENTS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content())


def stale(root: Path = ROOT) -> list[Path]:
    return [
        path
        for path, content in DOCUMENTS.items()
        if not (root / path).is_file() or (root / path).read_text() != content()
    ]


def _title(model: type[BaseModel]) -> str:
    return "General" if issubclass(model, Settings) else cell(model.__doc__).removesuffix(".")


def _default(variable: str, field: FieldInfo) -> str:
    if variable in _COMPUTED:
        return _COMPUTED[variable]
    if field.is_required():
        return "**required**"
    return setting(field.get_default(call_default_factory=False))
