"""Documentation that is written from the code, so that it cannot say something else."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.core.config import Settings
from app.dev import security
from app.dev.markdown import cell, setting, table
from app.migrations import revisions
from app.settings import variables

ROOT = Path(__file__).resolve().parents[3]
_GUIDE = Path("docs/adding-a-feature.md")
# Defaults that are computed from the machine: the document must not depend on who writes it.
_COMPUTED = {"APP_AUTH__HASH_THREADS": "one per usable core"}
_HEADING = """# Settings

Every setting is an environment variable. `make docs` writes this page from `src/app/core/config` and the `settings.py`
of each feature; `make check` compares them.

- `DATABASE_URL` and `PORT`, which platforms set, are understood as well; `APP_DATABASE__URL` and `APP_SERVER__PORT` win over them.
- Any setting may be a file instead: one of that name, in the folder that `APP_SECRETS_DIR` names. A variable wins over a file.
- Durations are seconds, or have a unit: `90`, `500ms`, `30s`, `10m`, `24h`, `14d`.
- A variable that is set to nothing counts as unset; one that begins with `APP_` and is no setting stops the start. What Kubernetes sets
  for a service called `app` (`…_SERVICE_HOST`, `…_PORT=tcp://…`) does not.
- libpq's variables (`PGHOST`, `PGSSLMODE`, `PGPASSWORD`, `PGSERVICE`, …) have no effect: the settings alone say which database is
  used, and how.
"""


def configuration() -> str:
    """The page about every setting, in the order of the code."""
    groups: dict[type[BaseModel], list[tuple[str, ...]]] = {}
    for variable, name, model in variables():
        field = model.model_fields[name]
        row = (f"`{variable}`", _default(variable, field), cell(field.description))
        groups.setdefault(model, []).append(row)
    sections = (
        f"## {_title(model)}\n\n{table('variable | default | what it does', rows)}" for model, rows in groups.items()
    )
    return "\n\n".join([_HEADING.strip(), *sections]) + "\n"


def guide() -> str:
    """The guide to a new feature: its migration follows the newest one, so that it can be pasted as it stands."""
    text = (ROOT / _GUIDE).read_text()
    (own,) = re.findall(r'^revision = "(\d{8}_\w+)"$', text, flags=re.MULTILINE)
    if own in revisions.known():
        # Somebody has followed the guide here.
        return text
    newest = revisions.head()
    # The same date keeps migrations dated in their order, and the page the same from one day to the next.
    date = newest[:8] if newest[:8].isdigit() else own[:8]
    text = text.replace(own, date + own[8:])
    return re.sub(r'^down_revision = ".*"$', f'down_revision = "{newest}"', text, flags=re.MULTILINE)


DOCUMENTS: Mapping[Path, Callable[[], str]] = MappingProxyType(
    {
        _GUIDE: guide,
        Path("docs/configuration.md"): configuration,
        Path("docs/security/asvs.md"): security.report,
        Path("docs/security/facts.md"): security.facts,
    }
)


def write(root: Path = ROOT) -> None:
    for path, content in DOCUMENTS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content())


def stale(root: Path = ROOT) -> list[Path]:
    """Documents that are missing, or that say something else than the code."""
    return [path for path, content in DOCUMENTS.items() if not _says(root / path, content())]


def _says(path: Path, content: str) -> bool:
    return path.is_file() and path.read_text() == content


def _title(model: type[BaseModel]) -> str:
    return "General" if model is Settings else cell(model.__doc__).removesuffix(".")


def _default(variable: str, field: FieldInfo) -> str:
    if variable in _COMPUTED:
        return _COMPUTED[variable]
    if field.is_required():
        return "**required**"
    return setting(field.get_default(call_default_factory=False))
