"""Generates the pages of the documentation that describe the code, so that they cannot become outdated."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.core.config import Settings
from app.dev import guide, security
from app.dev.markdown import cell, setting, table
from app.settings import variables

ROOT = guide.ROOT
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


DOCUMENTS: Mapping[Path, Callable[[], str]] = {
    guide.PATH: guide.text,
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
