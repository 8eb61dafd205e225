"""Generates the security pages: the ASVS report and the facts that the code enforces."""

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from app import features
from app.core.security.rate_limits import Limit
from app.dev.markdown import duration, setting, table
from app.settings import variables
from app.users.schemas import MeUpdate, UserCreate, UserRead, UserUpdate

SOURCE = Path(__file__).resolve().parents[1]
DATA = SOURCE.parents[1] / "docs" / "security"
STATUSES = ("met", "environment", "gap", "not applicable")
_REPORT = """# OWASP ASVS 5.0: status of each requirement

`make docs` generates this page from `docs/security/asvs.toml`. Tests check that every test named here exists and that every met
requirement has one. Chapters 2, 4, 6 to 9, 13, 14 and 16 are complete. Of the other chapters, the page lists the requirements for a
service without a front end. *environment*: the operator must fulfil the requirement. *gap*: it applies and is not fulfilled.
"""
_FACTS = """# Security facts from the code

`make docs` generates this page from the code and from `docs/security/data.toml`. [security.md](../security.md) explains the reasons.
"""


def report() -> str:
    data = read("asvs.toml")
    requirements = requirements_of(data)
    parts = [_REPORT.strip(), _counts(requirements), _gaps(requirements)]
    for number, title in data["chapters"].items():
        rows = [_row(name, one) for name, one in requirements.items() if name.partition(".")[0] == number]
        parts.append(f"## V{number} {title}\n\n" + table("id | level | status | implementation | tests", rows))
    return "\n\n".join(parts) + "\n"


def facts() -> str:
    data = read("data.toml")
    sections = {
        "Limits": table("limit | maximum | period | what is counted", _limits(data["limits"])),
        "Security settings": table("setting | default | reason", _settings(data["settings"])),
        "Fields of an account: who reads and writes them": table(
            "field | owner | administrator, creating | administrator, updating", _fields()
        ),
        "Operations that issue credentials": table("operation | input and result", _pairs(data["pathways"])),
        "Data classes": table("class | meaning", _pairs(data["classes"])),
        "Stored data": table(
            "table | column | class",
            (
                (name, f"`{column}`", kind)
                for name, columns in data["columns"].items()
                for column, kind in columns.items()
            ),
        ),
        "Secrets": table(
            "setting | protects | rotation",
            ((f"`{variable}`", one["protects"], one["change"]) for variable, one in data["secrets"].items()),
        ),
        "Audit events": table("event | meaning", _pairs(data["events"])),
    }
    return "\n\n".join([_FACTS.strip(), *(f"## {title}\n\n{table}" for title, table in sections.items())]) + "\n"


def read(name: str) -> dict[str, Any]:
    return tomllib.loads((DATA / name).read_text())


def requirements_of(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the requirements by number, in the order of the standard."""
    numbers = sorted(data.keys() - {"chapters"}, key=lambda number: [int(part) for part in number.split(".")])
    return {number: data[number] for number in numbers}


def _counts(requirements: Mapping[str, Mapping[str, Any]]) -> str:
    counted = Counter((one["level"], one["status"]) for one in requirements.values())
    levels = sorted({level for level, _ in counted})
    rows = [(f"{level}", *(str(counted[level, status]) for status in STATUSES)) for level in levels]
    return table(f"level | {' | '.join(STATUSES)}", rows)


def _gaps(requirements: Mapping[str, Mapping[str, Any]]) -> str:
    lines = (
        f"- **{number}** (level {one['level']}): {one['about']}"
        for number, one in requirements.items()
        if one["status"] == "gap"
    )
    return "\n".join(["## Gaps", "", *lines])


def _row(number: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in one.get("tests", ()))
    return number, str(one["level"]), one["status"], one["about"], tests


def _limits(about: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    for limit in (value for module in _limit_modules() for value in vars(module).values()):
        # A clone may have limits of its own.
        if isinstance(limit, Limit) and limit.name in about:
            yield f"`{limit.name}`", str(limit.amount), duration(limit.period), about[limit.name]


def _limit_modules() -> Iterator[ModuleType]:
    """Import the `limits.py` of each feature and of its packages."""
    for feature in features.names():
        for file in sorted((SOURCE / feature).rglob("limits.py")):
            yield import_module(".".join(["app", *file.relative_to(SOURCE).with_suffix("").parts]))


def _settings(reasons: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    defaults = {variable: model.model_fields[name].default for variable, name, model in variables()}
    return ((f"`{variable}`", setting(defaults[variable]), reason) for variable, reason in reasons.items())


def _fields() -> Iterator[tuple[str, ...]]:
    for field in UserRead.model_fields:
        writes = (field in model.model_fields for model in (MeUpdate, UserCreate, UserUpdate))
        yield f"`{field}`", *("reads, writes" if is_written else "reads" for is_written in writes)


def _pairs(entries: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    return ((f"`{name}`", about) for name, about in entries.items())
