"""Generates the contracts of import-linter from the folders and `FEATURES`, so that new modules are checked without an edit."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app import features

# Lowest last. A layer may import the layers below it.
_TOP = ("cli", "server | asgi", "main", "startup", "worker")
_BELOW_FEATURES = ("migrations", "models", "settings", "features", "core")
_CORE = (
    "commands",
    "http",
    "resources",
    "security",
    "observability",
    "db",
    "schemas",
    "config",
    "base64url : environment : errors : listening : product : signals : strict_json : validation_messages",
)
_OUTSIDE = {"__init__", "__main__", "dev", "loading"}
_INSIDE = (
    "router",
    "dependencies",
    "resources | commands",
    "service",
    "jobs",
    "links",
    "crud | schemas",
    "models",
    "errors",
)
# The files of a feature that may know HTTP.
_WEB = {"router", "dependencies", "pages", "resources"}
_WEB_FRAMEWORKS = ["fastapi", "starlette"]
_WORKER_ONLY = ("library", "runner", "service", "worker", "metrics")


class UnknownModuleError(Exception):
    """The contracts do not cover a module, a package or a feature. The text says what to do."""


@dataclass(frozen=True)
class Contract:
    """A contract of import-linter."""

    name: str
    kind: str
    guidance: str
    options: Mapping[str, Sequence[str] | bool] = field(default_factory=dict)


def contracts(source: Path) -> list[Contract]:
    """Return the contracts of the package `app` in this directory. `UnknownModuleError` if they do not cover all of it."""
    _check_coverage(source)
    modules = sorted(_modules(source))
    return [
        _layers(),
        _inside(source),
        _core(),
        *(_private_queries(modules, feature) for feature in features.names() if _queries(modules, feature)),
        _http(modules),
        Contract(
            "core knows no feature",
            "forbidden",
            "Code that two features share and that uses neither belongs to core. Code that uses a feature belongs to the feature.",
            {"source_modules": ["app.core"], "forbidden_modules": [f"app.{name}" for name in features.names()]},
        ),
        _protected(
            "The HTTP server is optional",
            ["app.server"],
            ["app.cli", "app.dev.run"],
            "Only app.cli and app.dev.run may import it.",
        ),
        _protected(
            "Features enqueue jobs and do not run them",
            [f"app.jobs.{name}" for name in _WORKER_ONLY],
            ["app.jobs", "app.main", "app.worker"],
            "Enqueue the job with jobs.queue, and list it in the feature's jobs.py.",
        ),
        _protected(
            "Production does not import the development tools", ["app.dev"], [], "app.dev is for `make` and the tests."
        ),
    ]


def as_toml(found: Iterable[Contract]) -> str:
    """Return the contracts as a configuration file of import-linter."""
    lines = ["[tool.importlinter]", 'root_package = "app"', "include_external_packages = true"]
    for contract in found:
        values: dict[str, object] = {"name": contract.name, "type": contract.kind, **contract.options}
        values["broken_contract_guidance"] = contract.guidance
        lines += [
            "",
            "[[tool.importlinter.contracts]]",
            *(f"{name} = {json.dumps(value)}" for name, value in values.items()),
        ]
    return "\n".join(lines) + "\n"


def _layers() -> Contract:
    below = (*reversed(features.names()), *_BELOW_FEATURES)
    return Contract(
        "Features build on those before them in FEATURES",
        "layers",
        "Move a use case that needs two features into the higher one. See FEATURES in src/app/features.py.",
        {
            "layers": [_named(layer) for layer in (*_TOP, *below)],
            # The routers of low features use dependencies of higher ones, such as the current user, and declare their errors.
            "ignore_imports": ["app.*.router -> app.*.dependencies", "app.*.router -> app.*.errors"],
            "unmatched_ignore_imports_alerting": "none",
        },
    )


def _named(layer: str) -> str:
    return " | ".join(f"app.{name}" for name in layer.split(" | "))


def _inside(source: Path) -> Contract:
    layers = [" | ".join(f"({name})" for name in layer.split(" | ")) for layer in _INSIDE]
    containers = [f"app.{name}" for name in features.names() if (source / name).is_dir()]
    return Contract(
        "Inside a feature, imports point down",
        "layers",
        "Move the shared part down a layer, or pass it in as an argument.",
        {"containers": containers, "layers": layers},
    )


def _core() -> Contract:
    return Contract(
        "The packages of core build on each other in one direction",
        "layers",
        "Move the shared part down, or pass it in as an argument.",
        {"containers": ["app.core"], "layers": list(_CORE)},
    )


def _private_queries(modules: Sequence[str], feature: str) -> Contract:
    own = [name for name in modules if _is_in(name, feature) and name.split(".")[-1] not in {"router", "dependencies"}]
    return _protected(
        f"The queries of {feature} are private to it",
        _queries(modules, feature),
        own,
        f"Call {feature}.service instead.",
    )


def _queries(modules: Sequence[str], feature: str) -> list[str]:
    return [name for name in modules if _is_in(name, feature) and name.endswith("crud")]


def _http(modules: Sequence[str]) -> Contract:
    packages = ("core.http", "server", "main", "asgi", "startup", "dev", "cli", "__main__")
    business = [
        name
        for name in modules
        if not any(_is_in(name, package) for package in packages) and name.split(".")[-1] not in _WEB
    ]
    return Contract(
        "Business code does not know HTTP",
        "forbidden",
        "Only router.py, dependencies.py, resources.py, pages.py and app.core.http may import FastAPI.",
        {
            "source_modules": business,
            "forbidden_modules": [*_WEB_FRAMEWORKS, "app.*.router", "app.*.dependencies"],
        },
    )


def _protected(name: str, modules: Sequence[str], importers: Sequence[str], guidance: str) -> Contract:
    options: dict[str, Sequence[str] | bool] = {
        "protected_modules": modules,
        "allowed_importers": importers,
        "as_packages": True,
    }
    return Contract(name, "protected", guidance, options)


def _is_in(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"app.{package}.")


def _modules(source: Path) -> Iterator[str]:
    for path in source.rglob("*.py"):
        if path.stem != "__init__":
            yield ".".join(("app", *path.relative_to(source).with_suffix("").parts))


def _check_coverage(source: Path) -> None:
    layers = " | ".join((*_TOP, *_BELOW_FEATURES)).split(" | ")
    _check_directory(
        source,
        {*layers, *_OUTSIDE, *features.names()},
        "add it to FEATURES in src/app/features.py, or move it into a feature",
    )
    _check_directory(
        source / "core", {"__init__", *" : ".join(_CORE).split(" : ")}, "add it to _CORE in src/app/dev/contracts.py"
    )
    if missing := [name for name in features.FEATURES if not (source / name).is_dir()]:
        message = f"FEATURES in src/app/features.py names {missing[0]}, but there is no directory src/app/{missing[0]}"
        raise UnknownModuleError(message)


def _check_directory(directory: Path, known: set[str], advice: str) -> None:
    found = {path.stem for path in directory.glob("*.py")} | {path.parent.name for path in directory.glob("*/*.py")}
    if unknown := sorted(found - known):
        message = f"No import contract covers {directory.name}/{unknown[0]}: {advice}."
        raise UnknownModuleError(message)
