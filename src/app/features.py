"""The features of the application, and the functions that find their parts.

A feature is a package of `app`. Its parts are the files and directories with the names in `PARTS`. `app features` prints them.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The development tools read this module without the libraries of the database.
    from app.core.security.resealing import SealedColumn

FEATURES: tuple[str, ...] = (
    "health",
    "home",
    "audit",
    "users",
    "auth",
    "factors",
    "account",
    "registration",
    "email_change",
    "self_service",
)
"""Lowest first: a feature may import the features before it."""

_PLATFORM = ("mail", "jobs")
PARTS = (
    "router",
    "models",
    "sealed",
    "jobs",
    "scopes",
    "settings",
    "commands",
    "resources",
    "second_factor",
    "export",
    "seed",
    "home",
    "templates",
)


def names() -> tuple[str, ...]:
    """Return the packages that can have parts: mail and jobs first, then the features."""
    return (*_PLATFORM, *FEATURES)


def parts(part: str) -> Iterator[tuple[str, ModuleType]]:
    """Import a part, such as `models`, of each feature that has it. Yield the name of the feature and the module."""
    for feature in names():
        if has(feature, part):
            yield feature, import_module(f"app.{feature}.{part}")


def templates() -> Iterator[Path]:
    return (_directory(feature) / "templates" for feature in names() if has(feature, "templates"))


def has(feature: str, part: str) -> bool:
    directory = _directory(feature)
    return (directory / f"{part}.py").is_file() or (directory / part).is_dir()


def _directory(feature: str) -> Path:
    return Path(__file__).parent / feature


def openers(name: str) -> Iterator[Any]:
    """Yield the function of this name, `open_for_web` or `open_for_worker`, of each feature whose `resources.py` has it."""
    return (vars(module)[name] for _, module in parts("resources") if hasattr(module, name))


def sealed_columns() -> "list[SealedColumn]":
    """Return the columns in `SEALED` of each feature's `sealed.py`."""
    return [column for feature, module in parts("sealed") for column in _declared(feature, module)]


def _declared(feature: str, module: ModuleType) -> "tuple[SealedColumn, ...]":
    if not hasattr(module, "SEALED"):
        message = f"app.{feature}.sealed has no SEALED: list the sealed columns of {feature} in it"
        raise TypeError(message)
    columns: tuple[SealedColumn, ...] = module.SEALED
    return columns
