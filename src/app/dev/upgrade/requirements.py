"""The pinned requirements of a clone: those of Bedplate, and the pins of packages that the clone has added."""

import re
import tomllib
from collections.abc import Iterable

_PIN = re.compile(r"^(?P<name>[\w.-]+)(?:\[[^\]]*\])?==(?:.*\n(?:[ ].*(?:\n|$))*)", re.MULTILINE)


def with_own_pins(base: str, clone: str, new: str) -> str:
    """Add the clone's own pins to the new requirements, in alphabetical order."""
    own = {name: pin for name, pin in _pins(clone).items() if name not in _pins(base)}
    pins = own | _pins(new)
    return _PIN.sub("", new) + "".join(pins[name] for name in sorted(pins)) if own else new


def _pins(text: str) -> dict[str, str]:
    return {pin["name"]: f"{pin[0].rstrip()}\n" for pin in _PIN.finditer(text)}


def are_same(one: str, other: str) -> bool:
    """Tell whether two texts of pyproject.toml ask for the same packages."""
    return _asked(one) == _asked(other)


def _asked(text: str) -> tuple[set[str], set[str]]:
    project = tomllib.loads(text)
    return _names(project["project"]["dependencies"]), _names(project["dependency-groups"]["dev"])


def _names(requirements: Iterable[str]) -> set[str]:
    return {requirement.replace(" ", "") for requirement in requirements}
