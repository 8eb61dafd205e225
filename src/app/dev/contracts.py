"""Generates the contracts of import-linter from the folders and `FEATURES`, so that new modules are checked without an edit."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from app import features

# Lowest last. A layer may import the layers below it.
_TOP = ("cli", "server | asgi", "main", "startup", "worker", "systemd | healthcheck | backup")
_BELOW_FEATURES = ("migrations", "models", "settings", "features", "core")
_CORE = (
    "commands : seeding",
    "http",
    "resources",
    "standby",
    "notifications",
    "security",
    "observability",
    "db",
    "schemas",
    "config",
    "base64url : environment : errors : listening : product : shutdown : signals : strict_json : validation_messages",
)
_OUTSIDE = {"__init__", "__main__", "dev", "loading"}
_INSIDE = (
    "router",
    "dependencies",
    "resources | commands | seed",
    "service",
    "jobs",
    "links",
    "crud | schemas",
    "views",
    "sealed",
    "models",
    "errors",
)
# The files of a feature that may know HTTP.
_WEB = {"router", "dependencies", "pages", "resources"}
# Of the feature `factors`: secrets, codes and tables, which are below the login.
_SESSIONLESS = ("crud", "models", "recovery_codes", "totp")
_WORKER_ONLY = ("library", "runner", "service", "worker", "metrics")


class UnknownModuleError(Exception):
    """The contracts do not cover a module, a package or a feature. The text says what to do."""


type Contract = dict[str, str | bool | Sequence[str]]


def contracts(source: Path) -> list[Contract]:
    """Return the contracts of the package `app` in this directory. `UnknownModuleError` if they do not cover all of it."""
    _check_coverage(source)
    paths = [path.relative_to(source) for path in source.rglob("*.py") if path.stem != "__init__"]
    modules = sorted(".".join(("app", *path.with_suffix("").parts)) for path in paths)
    return [
        _layers(),
        _contract(
            "Inside a feature, imports point down",
            "layers",
            "Move the shared part down a layer, or pass it in as an argument.",
            containers=[f"app.{name}" for name in features.names() if (source / name).is_dir()],
            layers=[" | ".join(f"({name})" for name in layer.split(" | ")) for layer in _INSIDE],
        ),
        _contract(
            "The packages of core build on each other in one direction",
            "layers",
            "Move the shared part down, or pass it in as an argument.",
            containers=["app.core"],
            layers=_CORE,
        ),
        *(_private_queries(modules, feature) for feature in features.names() if _queries(modules, feature)),
        _http(modules),
        _contract(
            "core knows no feature",
            "forbidden",
            "Code that two features share and that uses neither belongs to core. Code that uses a feature belongs to the feature.",
            source_modules=["app.core"],
            forbidden_modules=[f"app.{name}" for name in features.names()],
        ),
        *_sessionless(modules),
        _protected(
            "The HTTP server is optional",
            ["app.server"],
            ["app.cli", "app.dev.run", "app.dev.serving"],
            "Only app.cli, app.dev.run and app.dev.serving may import it.",
        ),
        _protected(
            "Features enqueue jobs and do not run them",
            [f"app.jobs.{name}" for name in _WORKER_ONLY],
            ["app.jobs", "app.main", "app.worker"],
            "Enqueue the job with jobs.queue, and list it in the feature's jobs.py.",
        ),
        _protected(
            "Production does not import the development tools",
            ["app.dev", *(name for name in modules if name.endswith(".seed"))],
            ["app.dev"],
            "app.dev and the seed.py of features are for `make` and the tests.",
        ),
    ]


def as_toml(found: Iterable[Contract]) -> str:
    lines = ["[tool.importlinter]", 'root_package = "app"', "include_external_packages = true"]
    for contract in found:
        values = (f"{name} = {json.dumps(value)}" for name, value in contract.items())
        lines += ["", "[[tool.importlinter.contracts]]", *values]
    return "\n".join(lines) + "\n"


def _contract(name: str, kind: str, guidance: str, **options: bool | Sequence[str] | str) -> Contract:
    return {"name": name, "type": kind, "broken_contract_guidance": guidance, **options}


def _layers() -> Contract:
    layers = (*_TOP, *reversed(features.names()), *_BELOW_FEATURES)
    return _contract(
        "Features build on those before them in FEATURES",
        "layers",
        "Move a use case that needs two features into the higher one. See FEATURES in src/app/features.py.",
        layers=[" | ".join(f"app.{name}" for name in layer.split(" | ")) for layer in layers],
        # The routers of low features use dependencies of higher ones, such as the current user, and declare their errors.
        ignore_imports=["app.*.router -> app.*.dependencies", "app.*.router -> app.*.errors"],
        unmatched_ignore_imports_alerting="none",
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


def _sessionless(modules: Sequence[str]) -> list[Contract]:
    sources = [name for name in modules if name in {f"app.factors.{module}" for module in _SESSIONLESS}]
    contract = _contract(
        "Second factors know no login sessions",
        "forbidden",
        "Move what needs a login session into another module of factors, such as its service.",
        source_modules=sources,
        forbidden_modules=["app.auth"],
    )
    # Without the feature, there is nothing to check.
    return [contract] if sources else []


def _http(modules: Sequence[str]) -> Contract:
    packages = ("core.http", "server", "main", "asgi", "startup", "dev", "cli", "__main__")
    business = [
        name
        for name in modules
        if not any(_is_in(name, package) for package in packages) and name.split(".")[-1] not in _WEB
    ]
    return _contract(
        "Business code does not know HTTP",
        "forbidden",
        "Only router.py, dependencies.py, resources.py, pages.py and app.core.http may import FastAPI.",
        source_modules=business,
        forbidden_modules=["fastapi", "starlette", "app.*.router", "app.*.dependencies"],
    )


def _protected(name: str, modules: Sequence[str], importers: Sequence[str], guidance: str) -> Contract:
    return _contract(
        name, "protected", guidance, protected_modules=modules, allowed_importers=importers, as_packages=True
    )


def _is_in(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"app.{package}.")


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
