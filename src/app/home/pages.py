"""Renders the pages. Their style is inline, and the policy of each page allows only this style."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Response

from app.core import product

if TYPE_CHECKING:
    from jinja2 import Environment

_DIRECTORY = Path(__file__).parent / "html"
# A mail may bring its own style and pictures. It runs no scripts, and its links open in a new tab.
_MAIL_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data: https:; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox"
)


def show(name: str, **facts: Any) -> Response:
    """Return a page."""
    content = _environment().get_template(f"{name}.html").render(facts)
    return Response(content, media_type="text/html", headers={"Content-Security-Policy": _policy()})


def framed(html: str) -> Response:
    """Return a document of others that only pages of this application can show in a frame."""
    headers = {"Content-Security-Policy": _MAIL_POLICY, "X-Frame-Options": "SAMEORIGIN"}
    return Response(f'<base target="_blank">{html}', media_type="text/html", headers=headers)


@cache
def _environment() -> "Environment":
    # Outside of `local` no page is rendered, so the web process does not load Jinja.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_DIRECTORY), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals["product"] = product.NAME
    return environment


@cache
def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256((_DIRECTORY / "style.css").read_bytes()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
