"""Renders the files of a feature from the templates, and formats them like the rest of the repository."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.dev.generator import edit, samples, words
from app.dev.generator.feature import Feature, Target
from app.dev.generator.repository import Revision

TEMPLATES = Path("scripts") / "feature"
_MODULES = ("models", "schemas", "errors", "crud", "service", "router")
_MODULES_OF_SCOPES = ("scopes", "dependencies")
# Templates import what any feature may need. The linter removes unused imports and sorts the others.
_RULES = ("--select", "I,F401", "--fix-only", "--quiet")
_NOBODY = dict.fromkeys(("parameter", "argument", "condition", "subject"), "")


def render(root: Path, feature: Feature, revision: Revision) -> dict[str, str]:
    """Return the text of each file of a feature by its path."""
    source, tests = f"src/app/{feature.name}", f"tests/{feature.name}"
    templates = {
        **{f"{source}/{module}.py": f"{module}.py.jinja" for module in _MODULES},
        **(
            {}
            if feature.has_owner
            else {f"{source}/{module}.py": f"{module}.py.jinja" for module in _MODULES_OF_SCOPES}
        ),
        f"src/app/migrations/versions/{revision.name}.py": "migration.py.jinja",
        f"{tests}/test_router.py": "test_router.py.jinja",
        f"{tests}/access.py": "access.py.jinja",
    }
    environment = _environment(root)
    values = _values(feature, revision)
    rendered = {path: environment.get_template(template).render(values) for path, template in templates.items()}
    return {f"{source}/__init__.py": "", **_formatted(root, rendered)}


def render_lookup(root: Path, target: Target) -> dict[str, str]:
    """Return the text of each file of a feature with `get_many`, which reads several of its rows in one statement."""
    environment, values = _environment(root), {"t": target, "own": _owner(target) if target.is_owned else _NOBODY}
    tests = environment.get_template("test_lookup.py.jinja").render(values)
    files = {f"tests/{target.name}/test_get_many.py": tests}
    for module in ("service", "crud"):
        path = f"src/app/{target.name}/{module}.py"
        code = environment.get_template(f"lookup_{module}.py.jinja").render(values)
        files[path] = edit.with_function((root / path).read_text(), code)
    return {path: formatted(root, path, text) for path, text in files.items()}


def imported_names(root: Path) -> set[str]:
    """Return the names that models and schemas import. A class or a field with such a name would hide it."""
    found: set[str] = set()
    for module in ("models", "schemas", "router", "service"):
        text = (root / TEMPLATES / f"{module}.py.jinja").read_text()
        for names in re.findall(r"^from [\w.]+ import ([\w, ]+)$", text, re.MULTILINE):
            found |= set(names.split(", "))
    return found


def formatted(root: Path, path: str, text: str) -> str:
    """Return Python code in the layout of this repository."""
    return _formatted(root, {path: text})[path]


def _formatted(root: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Format files in a temporary directory, because a process for each file takes longer."""
    with TemporaryDirectory() as directory:
        paths = {path: Path(directory, path) for path in files}
        for path, text in files.items():
            paths[path].parent.mkdir(parents=True, exist_ok=True)
            paths[path].write_text(text)
        for command in (("check", *_RULES), ("format", "--quiet")):
            _ruff(root, Path(directory), *command)
        return {path: copy.read_text() for path, copy in paths.items()}


def _ruff(root: Path, directory: Path, *command: str) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    # The directory has the layout of the repository, so that ruff finds out which imports are its own.
    options = ("--no-cache", "--config", root / "pyproject.toml", ".")
    done = subprocess.run([ruff, *command, *options], cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"The files cannot be formatted: {done.stderr.strip()}"
        raise ValueError(message)


def _environment(root: Path) -> Environment:
    # The delimiters differ from the default, which also occurs in Python: {{ in f-strings, {% and {# after a brace.
    environment = Environment(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        line_statement_prefix="%%",
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  # The templates are Python code.
        loader=FileSystemLoader(root / TEMPLATES),
    )
    environment.filters |= {
        "literal": _literal,
        "tuple": _tuple,
        "quoted": _quoted,
        "apply": _apply,
        "article": words.with_article,
        "snake": lambda text: text.replace(" ", "_"),
    }
    return environment


def _values(feature: Feature, revision: Revision) -> Mapping[str, Any]:
    return {
        "f": feature,
        "owner": _owner(feature) if feature.has_owner else _NOBODY,
        "own": _owner(feature) if feature.is_owned else _NOBODY,
        "revision": revision.name,
        "down_revision": revision.follows,
        "bodies": samples.bodies(feature),
        "foreign_body": samples.foreign_body(feature),
        "access_body": samples.access_body(feature),
        "shortest_body": samples.shortest_body(feature),
        "invalid": list(samples.invalid(feature)),
        "listings": list(samples.listings(feature)),
    }


def _owner(feature: Feature | Target) -> Mapping[str, str]:
    """Return the code that names the owner in a statement or call."""
    return {
        "parameter": "owner_id: UUID, ",
        "argument": "owner_id, ",
        "condition": f", {feature.cls}.owner_id == owner_id",
        "subject": "subject_id=owner_id, ",
    }


def _literal(value: object) -> str:
    return repr(value).replace("'", '"')


def _tuple(elements: Sequence[str]) -> str:
    # A comma after the last of several elements would put each on a line of its own.
    return f"({', '.join(elements)}{',' if len(elements) == 1 else ''})"


def _quoted(texts: Sequence[str]) -> str:
    return _tuple([f'"{text}"' for text in texts]).strip("()")


def _apply(value: object, function: Callable[[object], str]) -> str:
    return function(value)
