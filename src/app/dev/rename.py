"""`make rename NAME="Acme Billing"`: changes the name of the product in each file that contains it."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from annotated_types import MaxLen
from pydantic import BaseModel

from app.core.config import DatabaseSettings
from app.dev.upgrade.product_name import FILES, PRODUCT, Identity, identity, renamed
from app.mail.settings import MailSettings

# Characters that would end a string, a code span or a table cell in one of the files.
_UNUSABLE = '"\\`|<>'


class RenameError(Exception):
    """The name cannot be used. The text says why, and what to do."""


def rename(root: Path, name: str, slug: str = "") -> list[Path]:
    """Change the name and return the changed files. An invalid name changes no file."""
    chosen = _validated(root, name, slug)
    texts = _renamed(root, chosen)
    for path, text in texts.items():
        path.write_text(text)
    return [path.relative_to(root) for path in texts]


def current(root: Path) -> Identity:
    if found := identity((root / PRODUCT).read_text()):
        return found
    message = f'{PRODUCT} has no line NAME = "…" or no line SLUG = "…". Restore them first.'
    raise RenameError(message)


def slug_of(name: str) -> str:
    """Return the name in letters a to z, digits and hyphens, without accents."""
    plain = unicodedata.normalize("NFKD", re.sub("['\u2019]", "", name)).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _validated(root: Path, name: str, slug: str) -> Identity:
    if not name.isprintable():
        raise RenameError("The name contains a control character or another invisible character. Remove it.")
    name = " ".join(name.split())
    if not name:
        raise RenameError('The name is empty. Example: make rename NAME="Acme Billing"')
    if unusable := sorted(set(name) & set(_UNUSABLE)):
        message = f"The name contains {' '.join(unusable)}, which would break a file that contains the name. Remove it."
        raise RenameError(message)
    _check_length("The name", name, MailSettings, "from_name")
    slug = slug or slug_of(name)
    if not re.fullmatch(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*", slug):
        message = (
            f'"{slug}" is not a valid short form. Use letters a to z, digits and hyphens, for example SLUG=acme-billing'
        )
        raise RenameError(message)
    _check_length("The short form", slug, DatabaseSettings, "application_name")
    if re.search(rf"^{slug}(?:\[.*\])?==", (root / "requirements" / "dev.txt").read_text(), re.MULTILINE):
        message = f"{slug} is a package that this project installs. Choose another short form, for example SLUG={slug}-service"
        raise RenameError(message)
    return Identity(name, slug)


def _check_length(what: str, text: str, model: type[BaseModel], field: str) -> None:
    (longest,) = (rule.max_length for rule in model.model_fields[field].metadata if isinstance(rule, MaxLen))
    if len(text) > longest:
        message = f"{what} has {len(text)} characters; the maximum is {longest}. Choose a shorter one."
        if field == "application_name":
            message += " SLUG=… sets the short form."
        raise RenameError(message)


def _renamed(root: Path, chosen: Identity) -> Mapping[Path, str]:
    """Return the new text of each file that the new name changes."""
    before = current(root)
    texts = {
        path: renamed(str(path.relative_to(root)), path.read_text(), before, chosen)
        for files in FILES
        for path in root.glob(files)
    }
    return {path: text for path, text in sorted(texts.items()) if text != path.read_text()}
